"""A draft as the page shows it: sections of controls, and each thing to correct with its field and its line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.dashboard.recipe_form.builder import Builder
from api.dashboard.recipe_form.control import Control
from api.dashboard.recipe_form.draft import Draft
from api.dashboard.recipe_form.rules import Rules
from api.dashboard.recipe_text import Complaint

_SECTIONS = (
    ("Model", "", ("model", "name")),
    ("Chain", "", ("chain",)),
    ("Target", "", ("target", "also")),
    ("Text and measurements", "", ("calibration", "evaluate")),
    ("Publish", "To a repository on the Hub, by a credential that the project stored.", ("publish",)),
)
_LAST = ("Running", "Where it runs, for how long, and what it is called.")


@dataclass(frozen=True)
class Section:
    """A part of the form."""

    title: str
    help: str
    controls: tuple[Control, ...]


@dataclass(frozen=True)
class Correction:
    """One thing to correct, with the way to it."""

    complaint: Complaint
    label: str
    """Of the control that it is shown at."""
    target: str
    """The element's id; empty where there is none."""


def shown(draft: Draft, complaints: Sequence[Complaint], offered: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What the templates ask for."""
    # What an unreadable text is complained of has no field: the fields show what was there before.
    places = [] if draft.unreadable else [(each.field, each.reason) for each in complaints]
    builder = Builder(draft.document, places, Rules(draft.document), offered)
    return {
        "sections": _sections(builder.fields),
        "corrections": _corrections(builder.top, complaints, draft),
        "rest": builder.top.rest,
        "lines": {each.line for each in complaints if each.line},
    }


def _sections(fields: dict[str, Control]) -> list[Section]:
    """Fields of the recipe by section; what no section names is in the last."""
    made = [Section(title, help, tuple(fields[name] for name in names)) for title, help, names in _SECTIONS]
    placed = {name for _, _, names in _SECTIONS for name in names}
    return [*made, Section(*_LAST, tuple(each for name, each in fields.items() if name not in placed))]


def _corrections(top: Control, complaints: Sequence[Complaint], draft: Draft) -> list[Correction]:
    controls = list(_all(top))
    made = []
    for each in complaints:
        holders = (
            [] if draft.unreadable else [one for one in controls if each.reason in one.problems and _leads(one, each)]
        )
        holder = max(holders, key=lambda one: len(one.pointer), default=None)
        known = holder is not None and holder.pointer
        made.append(Correction(each, holder.label if known and holder else "", holder.id if known and holder else ""))
    return made


def _leads(control: Control, complaint: Complaint) -> bool:
    return f"{complaint.field}/".startswith(f"{control.pointer}/")


def _all(control: Control) -> Iterator[Control]:
    yield control
    for each in (*control.children, *control.folded):
        yield from _all(each)
