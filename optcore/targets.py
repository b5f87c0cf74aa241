"""Whether an engine will load what a recipe asks for: answered from the matrix, before any work."""

from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optcore.engines import ENGINES, KV, MIXED, Family, loading, obstacles, spoken
from optcore.errors import RecipeError
from optcore.export import AnyExport
from optcore.export.base import EngineName, Export
from optcore.frozen import members, tag
from optcore.mixes import formats_in
from optcore.report import Task
from optcore.techniques.upcycle import Upcycle

if TYPE_CHECKING:
    from optcore.recipe import Recipe
    from optcore.techniques.base import Technique

Formats = tuple[str, ...]
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of routed experts of a layer."""


def check_target(recipe: "Recipe", family: Family | None = None) -> None:
    """Refuse number formats that the target cannot hold, or that no engine (or not the one asked for) loads from it.

    The family is known once the model's configuration is here. Raises `RecipeError` with the reason and a way out.
    """
    exports = tuple(targets(recipe))
    for number, technique in enumerate(recipe.chain):
        if isinstance(technique, Upcycle):
            family = "moe"
        for candidate in (technique, *technique.alternatives):
            main, *further = checkpoints(candidate)  # a technique that does not quantize names no format
            named = dict(zip(getattr(candidate, "also", ()), further, strict=True))
            for place, export in exports:
                wanted = (main, *(formats for name, formats in named.items() if belongs(name, export)))
                for formats in wanted:
                    check_export(export, formats, family, place, f"/chain/{number}")


def belongs(name: str, export: Export | type[Export]) -> bool:
    """Whether a further format, or every format of a mix, has a place in a target."""
    return set(formats_in(name)) <= export.schemes


def check_exports(recipe: "Recipe", model: Path, task: Task) -> None:
    """Refuse targets whose writers are not installed, models that a target has no place for, once the source is here,
    and number formats that it holds for other models only. Raises `RecipeError`."""
    for place, export in targets(recipe):
        export.check_packages(task, place)
        export.check_model(model, task, place)
        if task != "text-generation" and export.encoder_schemes is not None:
            _check_encoder(recipe, export, export.encoder_schemes)


def _check_encoder(recipe: "Recipe", export: Export, held: frozenset[str]) -> None:
    for number, technique in enumerate(recipe.chain):
        for candidate in (technique, *technique.alternatives):
            formats = [name for checkpoint in checkpoints(candidate) for name in checkpoint]
            if other := next((name for name in formats if name in export.schemes - held), None):
                raise RecipeError(
                    f"{export.title} cannot hold {spoken(other)} of an encoder",
                    remedy=f"use one of {', '.join(sorted(held))}, or another target",
                    field=f"/chain/{number}/scheme",
                )


def targets(recipe: "Recipe") -> Iterator[tuple[str, Export]]:
    """Every target with its place in the recipe."""
    yield "/target", recipe.target
    more: tuple[Export, ...] = getattr(recipe, "also", ())
    yield from ((f"/also/{number}", export) for number, export in enumerate(more))


@lru_cache(maxsize=1024)  # a question of tables, asked for every submission
def check_export(
    target: Export, formats: Formats, family: Family | None = None, place: str = "/target", chain: str = ""
) -> None:
    """The same for one checkpoint's formats: schemes, KV cache formats after `kv:`, `mixed`.

    `place` and `chain` are where the recipe names the target and the formats.
    """
    format_, way_out = tag(type(target)), partial(_way_out, target.engine, formats, family)
    for name in formats:
        if not _holds(type(target), name):
            field = f"{chain}/{'kv_cache' if name.startswith(KV) else 'scheme'}" if chain else place
            raise RecipeError(f"{target.title} cannot hold {spoken(name)}", remedy=way_out(), field=field)
    if target.engine:
        if reasons := obstacles(format_, target.engine, formats, family):
            raise RecipeError(
                f"{ENGINES[target.engine]} does not load {' and '.join(reasons)} from {target.title}",
                remedy=way_out(),
                field=f"{place}/engine",
            )
    elif not loading(format_, formats, family):
        wanted = ", ".join(spoken(name) for name in formats)
        raise RecipeError(
            f"no known engine loads {wanted} from {target.title}", remedy=way_out(), field=f"{place}/format"
        )


def family_of(config: dict[str, Any], shapes: Iterable[tuple[int, ...]] = ()) -> Family:
    """The family of a model by its `config.json` and the shapes of its tensors.

    Keys such as `n_routed_experts` tell a mixture of experts; tensors with a first dimension of that size, fused ones.
    """
    known = {**config, **(config.get("text_config") or {})}
    counts = {known[key] for key in EXPERT_COUNTS if isinstance(known.get(key), int) and known[key] > 1}
    if not counts:
        return "dense"
    return "fused_moe" if any(len(shape) == 3 and shape[0] in counts for shape in shapes) else "moe"


def checkpoints(technique: "Technique") -> Iterator[Formats]:
    """The formats of each checkpoint that a technique leaves, as the matrix names them; the main one comes first."""
    named: tuple[Formats, ...] = getattr(technique, "checkpoints", ((),))
    cache: str | None = getattr(technique, "kv_cache", None)
    for chosen in named:
        mixed = (MIXED,) if len(chosen) > 1 else ()
        yield (*chosen, *mixed, *((f"{KV}{cache}",) if cache else ()))


def _holds(target: type[Export], name: str) -> bool:
    if name == MIXED:
        return True  # the matrix knows
    return name.removeprefix(KV) in target.kv_caches if name.startswith(KV) else name in target.schemes


def _way_out(engine: EngineName | None, formats: Formats, family: Family | None) -> str:
    """The nearest combination that works: another target for the engine, else another engine, else fewer formats."""
    fitting = [
        (tag(target), loading(tag(target), formats, family))
        for target in members(AnyExport)
        if issubclass(target, Export) and all(_holds(target, name) for name in formats)
    ]
    if found := next((name for name, able in fitting if engine in able), None):
        return f"use `target: {{format: {found}}}`, which {engine} loads"
    if found := next((f"`target: {{format: {name}}}`, which {able[0]} loads" for name, able in fitting if able), None):
        return f"use {found}" if engine is None else f"leave `engine` out and use {found}"
    if any(name.startswith(KV) for name in formats):
        return "leave `kv_cache` out, or name `fp8`, which most engines load"
    return "choose one number format for all layers, or others than these"
