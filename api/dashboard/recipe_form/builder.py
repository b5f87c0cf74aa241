"""From a draft to the controls that show it: a walk over the schema and the document together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from api.dashboard.recipe_form.adding import adders_for, option_label
from api.dashboard.recipe_form.control import Control, Option
from api.dashboard.recipe_form.fitting import can_spell, default_words, hint_of, kind_of, spelt, variant_label
from api.dashboard.recipe_form.posted import written
from api.dashboard.recipe_form.prominent import PROMINENT
from api.dashboard.recipe_form.rules import Rules
from api.dashboard.recipe_form.schema import (
    NAME,
    Schema,
    choices,
    is_nullable,
    named,
    recipe_schema,
    resolved,
    single,
    title_of,
    variant_of,
    variants,
    words,
)
from api.dashboard.recipe_form.starters import starter

ABSENT: Any = object()
MOST_CONTROLS = 1200
"""Of one form; what lies beyond is edited as YAML, so that what a form posts is bounded."""


@dataclass(frozen=True)
class Spot:
    """One place of the walk."""

    pointer: str
    label: str
    schema: Schema
    value: Any
    is_required: bool = False

    @property
    def is_set(self) -> bool:
        """Whether the draft has it."""
        return self.value is not ABSENT

    def child(self, key: str | int, schema: Schema, value: Any, *, is_required: bool = False) -> "Spot":
        """A field or an item of this one."""
        part = str(key).replace("~", "~0").replace("/", "~1")
        label = words(key) if isinstance(key, str) else f"{key + 1}"
        return Spot(f"{self.pointer}/{part}", label, resolved(schema), value, is_required)


@dataclass
class Builder:
    """Makes the controls of one draft."""

    document: Mapping[str, Any]
    complaints: Sequence[tuple[str, str]]
    """What is wrong: JSON Pointers and reasons."""
    rules: Rules
    offered: Mapping[str, tuple[str, ...]]
    """Values to suggest, by JSON Pointer."""
    _made: int = 0

    @cached_property
    def fields(self) -> dict[str, Control]:
        """The recipe's own fields, by name."""
        return {each.pointer[1:]: each for each in self.top.children}

    @cached_property
    def top(self) -> Control:
        """The whole recipe."""
        made = self._group(Spot("", "Recipe", recipe_schema(), self.document))
        return replace(made, children=(*made.children, *made.folded), folded=())

    def _control(self, spot: Spot) -> Control:
        self._made += 1
        kind = kind_of(spot.schema)
        is_long = kind in ("group", "list", "union") and self._made > MOST_CONTROLS
        if spot.is_set and (is_long or not can_spell(kind, single(spot.schema), spot.value)):
            return self._as_yaml(spot)
        made: dict[str, Callable[[Spot], Control]] = {
            "group": self._group,
            "list": self._list,
            "tuple": self._tuple,
            "pick": self._pick,
            "union": self._union,
            "check": self._check,
        }
        return made.get(kind, self._plain)(spot)

    def _base(self, spot: Spot, **more: Any) -> Control:
        own = tuple(reason for pointer, reason in self.complaints if pointer == spot.pointer)
        return Control(
            pointer=spot.pointer,
            label=spot.label,
            help=spot.schema.get("description", ""),
            is_set=spot.is_set,
            is_required=spot.is_required,
            **{"problems": own, "placeholder": default_words(spot.schema), **more},
        )

    def _all_below(self, spot: Spot) -> tuple[str, ...]:
        """What is wrong anywhere in it, for a control that has no further ones."""
        below = f"{spot.pointer}/"
        return tuple(reason for pointer, reason in self.complaints if f"{pointer}/".startswith(below))

    def _as_yaml(self, spot: Spot) -> Control:
        return self._base(spot, kind="value", value=written(spot.value), problems=self._all_below(spot))

    def _plain(self, spot: Spot) -> Control:
        kind = kind_of(spot.schema)
        value = "" if not spot.is_set else written(spot.value) if kind == "value" else spelt(kind, spot.value)
        scalars = [each["const"] for each in variants(spot.schema) if "const" in each]
        return self._base(
            spot,
            kind=kind,
            value=value,
            hint=hint_of(spot.schema),
            suggestions=self.offered.get(spot.pointer, tuple(map(str, scalars))),
            problems=self._all_below(spot),
        )

    def _check(self, spot: Spot) -> Control:
        default = spot.schema.get("default")
        off, on = ("false", "true") if spot.is_set else ("", "true") if not default else ("false", "")
        is_on = spot.value if spot.is_set else bool(default)
        return self._base(spot, kind="check", value="on" if is_on else "", words={"off": off, "on": on})

    def _pick(self, spot: Spot) -> Control:
        closed: list[Any] = list(choices(spot.schema) or ())
        if is_nullable(spot.schema) and (spot.schema.get("default", ABSENT) is not None or spot.value is None):
            closed.append(None)
        if spot.is_set and spot.value not in closed:
            closed.insert(0, spot.value)
        options = [self._option(spot, closed, value) for value in closed]
        default = default_words(spot.schema)
        if not (spot.is_set and spot.is_required):
            label = f"{default} (default)" if default else "Choose" if spot.is_required else "not set"
            options.insert(0, Option("", label, not spot.is_set))
        return self._base(spot, kind="pick", options=tuple(options), problems=self._all_below(spot))

    def _option(self, spot: Spot, closed: list[Any], value: Any) -> Option:
        is_chosen = spot.is_set and value == spot.value
        reason = "" if is_chosen else self.rules.against(spot.pointer, value)
        return Option(written(value), option_label(closed, value), is_chosen, reason)

    def _group(self, spot: Spot) -> Control:
        schema = single(spot.schema)
        if not spot.is_set and is_nullable(spot.schema):
            return self._base(spot, kind="group", adders=adders_for(self.rules, spot.pointer, schema, None))
        value = spot.value if spot.is_set else {}
        fields = schema["properties"]
        tag = named(schema)
        needed = schema.get("required", ())
        shown = {
            key: self._control(spot.child(key, field, value.get(key, ABSENT), is_required=key in needed))
            for key, field in fields.items()
            if not (tag and key == tag[0]) and "const" not in field
        }
        main = [key for key in shown if key in needed or key in PROMINENT or not spot.pointer]
        main.sort(key=lambda key: (shown[key].kind in ("group", "list", "union"), key not in needed))
        rest = {key: each for key, each in value.items() if key not in fields}
        claimed = tuple(each.pointer for each in shown.values())
        label = title_of(schema[NAME]) if tag and NAME in schema else spot.label
        return self._base(
            Spot(spot.pointer, label, schema, spot.value, spot.is_required),
            kind="group",
            is_optional=is_nullable(spot.schema),
            tag=tag,
            children=tuple(shown[key] for key in main),
            folded=tuple(each for key, each in shown.items() if key not in main),
            rest=written(rest) if rest else "",
            problems=self._unclaimed(spot.pointer, claimed),
        )

    def _unclaimed(self, pointer: str, claimed: tuple[str, ...]) -> tuple[str, ...]:
        """What is wrong here and is not shown at a field."""
        return tuple(
            reason
            for field, reason in self.complaints
            if f"{field}/".startswith(f"{pointer}/") and not any(f"{field}/".startswith(f"{each}/") for each in claimed)
        )

    def _list(self, spot: Spot) -> Control:
        items = resolved(single(spot.schema)["items"])
        values = spot.value if spot.is_set else []
        children = tuple(
            replace(self._item(spot.child(number, items, value)), number=number + 1, of=len(values))
            for number, value in enumerate(values)
        )
        is_full = len(values) >= single(spot.schema).get("maxItems", 64)
        by_default = not spot.is_set and spot.schema.get("default")
        return self._base(
            spot,
            kind="list",
            children=children,
            problems=self._unclaimed(spot.pointer, tuple(each.pointer for each in children)),
            adders=() if is_full else adders_for(self.rules, spot.pointer, items, None if by_default else list(values)),
        )

    def _item(self, spot: Spot) -> Control:
        options = variants(spot.schema)
        if len(options) > 1 and choices(spot.schema) is None:
            found = variant_of(options, spot.value)
            if found is None:
                return self._as_yaml(spot)
            spot = replace(spot, schema=resolved(options[found]))
        return self._control(replace(spot, is_required=True))

    def _tuple(self, spot: Spot) -> Control:
        schema = single(spot.schema)
        default = schema.get("default") or [None] * len(schema["prefixItems"])
        children = [
            self._control(
                spot.child(number, {**item, "default": default[number]}, spot.value[number] if spot.is_set else ABSENT)
            )
            for number, item in enumerate(schema["prefixItems"])
        ]
        if not spot.is_set:  # one field, as a list of which only some are given is none
            return self._base(spot, kind="numbers", hint=f"{len(children)} numbers", problems=self._all_below(spot))
        return self._base(spot, kind="tuple", children=tuple(children))

    def _union(self, spot: Spot) -> Control:
        kinds = variants(spot.schema)
        found = variant_of(kinds, spot.value) if spot.is_set else None
        if spot.is_set and found is None:
            return self._as_yaml(spot)
        options = [self._kind(spot, number, each, found) for number, each in enumerate(kinds)]
        if not spot.is_required:
            told = default_words(spot.schema)
            if not told and isinstance(default := spot.schema.get("default"), dict):
                told = next((str(each) for each in default.values() if each in self._tags(kinds)), "")
            options.insert(0, Option("", f"{told} (default)" if told else "not set", not spot.is_set))
        inner = self._inner(spot, kinds[found]) if found is not None else None
        return self._base(
            spot,
            kind="union",
            options=tuple(options),
            children=(inner,) if inner else (),
            problems=() if inner else self._all_below(spot),
        )

    @staticmethod
    def _tags(kinds: Sequence[Schema]) -> list[str]:
        return [tag[1] for each in kinds if (tag := named(each))]

    def _kind(self, spot: Spot, number: int, schema: Schema, found: int | None) -> Option:
        tag = named(schema)
        title = title_of(schema[NAME]) if tag and NAME in schema else ""
        label = f"{tag[1]}: {title}" if tag and title not in ("", tag[1]) else variant_label(schema)
        reason = "" if number == found else self.rules.against(spot.pointer, starter(schema), is_begun=True)
        return Option(str(number), label, number == found, reason)

    def _inner(self, spot: Spot, schema: Schema) -> Control:
        """The fields of the kind that was chosen."""
        said = {key: value for key, value in schema.items() if key not in ("default", "description")}
        return self._control(replace(spot, schema=said, is_required=True))
