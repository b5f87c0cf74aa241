"""What every table is made with."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import DDL, CheckConstraint, ForeignKey, MetaData, Text, event, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Row(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
    }


# Trigrams find a part of a name without reading every job. Any owner of a database may create this extension.
event.listen(Row.metadata, "before_create", DDL("CREATE EXTENSION IF NOT EXISTS pg_trgm"))  # type: ignore[no-untyped-call]


def created() -> Mapped[datetime]:
    """When the row was inserted."""
    return mapped_column(server_default=func.now())


def count() -> Mapped[int]:
    """A number that starts at 0."""
    return mapped_column(server_default=text("0"))


def job_key(*, primary: bool = False) -> Mapped[str]:
    """A row that goes with its job."""
    return mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=primary)


def one_of(column: str, *values: str) -> CheckConstraint:
    """A check that a column holds one of a few words."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def project_key(*, primary: bool = False) -> Mapped[str]:
    """The tenant that a row belongs to."""
    return mapped_column(ForeignKey("projects.id"), primary_key=primary)
