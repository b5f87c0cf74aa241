"""What the form shows, as data: the templates only spell it."""

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

Kind = Literal[
    "text", "number", "numbers", "lines", "pairs", "value", "check", "pick", "group", "list", "union", "tuple"
]


@dataclass(frozen=True)
class Option:
    """One of the values to pick from."""

    value: str
    """As it is posted."""
    label: str
    is_chosen: bool = False
    reason: str = ""
    """Why it cannot be, as the draft stands."""


@dataclass(frozen=True)
class Adder:
    """A button that adds something."""

    do: str
    """What is posted."""
    label: str
    help: str = ""
    reason: str = ""
    """Why it cannot be added."""
    note: str = ""
    """Where it will be put, when that is not at the end."""


@dataclass(frozen=True)
class Control:
    """One field of the form, or several with a common head."""

    kind: Kind
    pointer: str
    label: str
    help: str = ""
    hint: str = ""
    """What its value may be, in short."""
    value: str = ""
    """As it is posted."""
    placeholder: str = ""
    """What holds when it is left empty."""
    options: tuple[Option, ...] = ()
    suggestions: tuple[str, ...] = ()
    is_set: bool = False
    """Whether the draft says it."""
    is_required: bool = False
    is_optional: bool = False
    """Whether it can be there or not, as a whole."""
    problems: tuple[str, ...] = ()
    tag: tuple[str, str] | None = None
    """The key and the value that say which member of a union this is."""
    children: "tuple[Control, ...]" = ()
    folded: "tuple[Control, ...]" = ()
    """Those that few people need."""
    adders: tuple[Adder, ...] = ()
    rest: str = ""
    """Keys that no field is for, as YAML."""
    number: int = 0
    """Among the items of its list, from 1."""
    of: int = 0
    """How many items that list has; 0 for what is no item."""
    words: dict[str, str] = field(default_factory=dict)
    """Of a check: what is posted when it is off and on."""

    @property
    def id(self) -> str:
        """Of the element that holds the value, or of the group."""
        return "f" + quote(self.pointer, safe="/-_")

    @property
    def described_by(self) -> str:
        """The elements that say more of it."""
        found = [name for name, said in (("help", self.help or self.hint), ("bad", self.problems)) if said]
        return " ".join(f"{self.id}-{name}" for name in found)

    @property
    def is_open(self) -> bool:
        """Whether what is folded should be seen: something in it is set, or wrong."""
        return any(each.is_set or each.has_problems for each in self.folded)

    @property
    def has_problems(self) -> bool:
        """Whether anything in it is wrong."""
        return bool(self.problems) or any(each.has_problems for each in (*self.children, *self.folded))
