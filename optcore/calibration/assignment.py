"""Which linear layer gets which number format, decided and checked before any work."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from optcore.errors import RecipeError
from optcore.mixes import MIXES, Anatomy, base_of, fitting, resolved
from optcore.schemes import GGML_FORMATS, PRESETS, Scheme
from optcore.streaming.match import is_matched, time_limit, unmatched

if TYPE_CHECKING:
    from optcore.techniques.ptq import Ptq

_EXPERT = re.compile(r"(?<![^.])experts\.\d+\.")


def all_experts(name: str) -> str:
    """A module's name with an expert's number replaced by a star: what all experts of a layer have in common."""
    return _EXPERT.sub("experts.*.", name)


class Assignment:
    """One format for each module name; None leaves it in high precision."""

    def __init__(self, scheme: str, technique: "Ptq", chosen: Mapping[str, str | None] | None = None) -> None:
        """`scheme` may be a mix: then every module has its base until `place` says where each of them stands."""
        self.scheme = scheme
        self.fallen_back: dict[str, tuple[str, str | None]] = {}
        """Modules whose rows are no whole number of blocks: the format that the rules say, and what they got."""
        self._technique = technique
        self._chosen = chosen or {}
        self._inputs: Mapping[str, int] = {}
        self._mixed: Mapping[str, str] = {}
        self._found: dict[str, Scheme | None] = {}

    def place(self, inputs: Mapping[str, int], model: Anatomy) -> None:
        """Take in every linear layer of the decoder with its number of inputs, in the order of the model."""
        self._inputs = inputs
        self._mixed = resolved(MIXES[self.scheme], list(inputs), model) if self.scheme in MIXES else {}

    def __getitem__(self, name: str) -> Scheme | None:
        """`ignore` first, then what was chosen for this very module, then the first override, then the scheme."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> Scheme | None:
        if is_matched(name, self._technique.ignore):
            return None
        found: str | None = self._mixed.get(name, base_of(self.scheme))
        if name in self._chosen:
            found = self._chosen[name]
        else:
            for override in self._technique.overrides:
                if is_matched(name, [override.modules]):
                    found = override.scheme
                    break
        if found and name in self._inputs:
            wanted, found = found, fitting(found, self._inputs[name])
            if found != wanted:
                self.fallen_back[name] = wanted, found
        return PRESETS[found] if found else None

    def check(self, groups: Iterable[Sequence[str]], names: Iterable[str]) -> None:
        """Refuse patterns without a match, and formats that differ inside what engines run as one."""
        patterns = [*self._technique.ignore, *(override.modules for override in self._technique.overrides)]
        names = list(names)
        with time_limit():
            lost = unmatched(patterns, names) if names else []
            self._found |= {name: self._find(name) for name in names}
        if lost:
            raise RecipeError(
                f"{lost[0]!r} matches no linear layer of the decoder",
                remedy="write a module's name as it is in the checkpoint, or a regular expression after `re:`",
                field="/chain",
            )
        for group in groups:
            if self._run_fused(group):
                self._check_one_format(group, "engines fuse into one matrix")
        self._check_experts(names)

    def _check_experts(self, names: Iterable[str]) -> None:
        together: dict[str, list[str]] = {}
        for name in names:
            if (key := all_experts(name)) != name:
                together.setdefault(key, []).append(name)
        blocks: dict[str, list[str]] = {}
        for key, alike in together.items():
            self._check_one_format(alike, "engines run as one kernel")
            blocks.setdefault(key.rpartition(".")[0], []).extend(alike)
        for experts in blocks.values():
            if self._run_fused(experts):
                self._check_one_format(experts, "engines run as one kernel")

    def _run_fused(self, names: Iterable[str]) -> bool:
        """Whether engines run these as one, by the format of any of them."""
        return any(scheme.runs_fused for name in names if (scheme := self[name]))

    def _check_one_format(self, names: Sequence[str], why: str) -> None:
        formats = {scheme.name if scheme else "none" for scheme in (self[name] for name in names)}
        if len(formats) > 1:
            shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
            raise RecipeError(
                f"{shown} would get different formats ({', '.join(sorted(formats))}), but {why}",
                remedy="let `ignore` and `overrides` take all of them or none",
                field="/chain",
            )


def unfit_group(inputs: int, scheme: Scheme) -> int | None:
    """The size of the format's groups that do not divide so many inputs; None where all do.

    ggml's block formats have others to fall back to.
    """
    if scheme.name in GGML_FORMATS:
        return None
    for args in (scheme.weights, scheme.activations):
        size = args.group_size if args else None
        if size and inputs % size and (args is scheme.weights or scheme.weights.group_size):
            return size
    return None


def check_groups(name: str, inputs: int, scheme: Scheme) -> None:
    """Refuse a linear layer whose inputs the format's groups do not divide."""
    if size := unfit_group(inputs, scheme):
        raise RecipeError(
            f"{name} has {inputs} inputs, which groups of {size} do not divide",
            remedy=f"add it to `ignore`, or choose another scheme than {scheme.name}",
            field="/chain",
        )
