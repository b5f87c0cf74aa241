"""What a reader wants to see in the list of jobs: the fields of its form, which are the query of its address too."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import Field

from api.errors import BadRequest
from api.ids import is_id
from api.store.listing import Query
from lathe.models import JobStatus
from optcore.frozen import Frozen

Show = Literal["all", "active", "succeeded", "failed", "cancelled"]
STATUSES: dict[Show, tuple[JobStatus, ...]] = {
    "all": (),
    "active": ("queued", "running", "pausing", "paused", "cancelling"),
    "succeeded": ("succeeded",),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
}
LIVE: tuple[Show, ...] = ("all", "active")
"""Lists that an index answers at once, however many jobs there are: these may be asked for again and again."""

_Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")]
_Cursor = Annotated[str | None, Field(max_length=64)]


class JobFilter(Frozen):
    """The query of `/`. What is empty does not matter."""

    show: Show = "all"
    name: _Text = ""
    technique: _Text = ""
    model: _Text = ""
    label: _Text = ""
    """A label of the recipe's metadata, as `team=nlp`."""
    since: _Text = ""
    """A day, in UTC, as `2026-12-31`."""
    until: _Text = ""
    """The last day."""
    order: Literal["newest", "oldest"] = "newest"
    after: _Cursor = None
    before: _Cursor = None
    only: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=100)] = ()
    """These jobs of the list alone, as they are now."""

    @property
    def is_live(self) -> bool:
        """Whether new jobs may appear in this list while it is looked at."""
        return self.show in LIVE and not self.is_filtered

    @property
    def is_filtered(self) -> bool:
        """Whether more than the status was asked for."""
        return bool(self.model_dump(exclude={"show", "after", "before", "only"}, exclude_defaults=True))

    def query(self) -> Query:
        """For the database. Raises `BadRequest` for words that mean nothing."""
        key, equals, value = self.label.partition("=")
        if self.label and not (equals and key.strip()):
            raise BadRequest("a label is written as key=value", remedy="such as team=nlp", field="label")
        return Query(
            ids=[job_id for job_id in self.only if is_id("job", job_id)],
            statuses=STATUSES[self.show],
            technique=self.technique or None,
            model=self.model.strip() or None,
            name_contains=self.name.strip() or None,
            metadata={key.strip(): value.strip()} if self.label else {},
            created_after=_midnight("since", self.since),
            created_before=_midnight("until", self.until, days=1),
            oldest_first=self.order == "oldest",
        )

    def address(self, **changes: str | Sequence[str]) -> str:
        """Of the same list with changes, from its beginning unless a cursor is among them."""
        kept = self.model_dump(exclude={"after", "before", "only"})
        asked = {**kept, **changes}
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        query = urlencode({name: value for name, value in asked.items() if value != defaults[name]}, doseq=True)
        return f"/?{query}" if query else "/"


def _midnight(field: str, text: str, days: int = 0) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.combine(date.fromisoformat(text) + timedelta(days=days), time(), UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{text!r} is no day", remedy="write it as 2026-12-31", field=field) from error
