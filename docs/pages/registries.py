"""The page of number formats and targets, from the registries of the engine."""

from typing import Any

from docs.pages.markdown import codes, one_line, table
from optcore.export import AnyExport, Export
from optcore.frozen import members, tag
from optcore.schemes import KV_CACHE_PRESETS, PRESETS, QuantArgs, Scheme

_SCALES = {
    "stored": "",
    "e4m3": " in FP8, one more per tensor",
    "e8m0": ", a power of two",
    "double": " in 8 bits, one more per 256 of these",
    "f16": " in float16",
    "super": " in few bits, one more per super-block of 256",
}


def formats_page() -> str:
    """Number formats, targets, and which target holds which format."""
    targets = [target for target in members(AnyExport) if issubclass(target, Export)]
    schemes = [_scheme(scheme) for scheme in PRESETS.values()]
    caches = [(f"`{name}`", numbers(args)) for name, args in KV_CACHE_PRESETS.items()]
    holds = [
        (f"`{tag(target)}`", one_line(target.__doc__), codes(_in_order(target.schemes, PRESETS)),
         codes(_in_order(target.kv_caches, KV_CACHE_PRESETS)))
        for target in targets
    ]  # fmt: skip
    return f"""# Number formats and targets

## Number formats

Values of `scheme` in a recipe's chain. *Bits*: stored per weight of a 4096 x 4096 layer, with 16-bit scales where they
have no type of their own. *Calibration*: whether scales of activations are measured on text.

{table(("Name", "Format", "Bits", "Weights", "Activations", "Calibration"), schemes)}

## KV cache formats

Values of `kv_cache`.

{table(("Name", "Numbers"), caches)}

## Targets

Values of `target.format`: what is written to disk, and which number formats it can hold. Which engine loads which of
them is [a page of its own](engines.md).

{table(("Name", "What it is", "Formats", "KV cache"), holds)}
"""


def numbers(args: QuantArgs | None) -> str:
    """How one kind of tensor is stored, in words."""
    if args is None:
        return "unchanged"
    size = args.group_size or ("x".join(map(str, args.block)) if args.block else None)
    kind = {"nf": "NormalFloat"}.get(args.type, args.type)
    shared = "group" if args.strategy == "tensor_group" else args.strategy
    details = [
        f"{args.bits} bit {kind}",
        f"a scale per {shared}{f' of {size}' if size else ''}{_SCALES[args.scale_type]}",
    ]
    if not args.symmetric:
        details.append({"float": "a bias per channel", "uint": "minimums"}.get(args.type, "zero points"))
    if args.outliers:
        details.append(f"columns with a magnitude above {args.outliers:g} unchanged")
    return ", ".join(details) + (", scaled at run time" if args.dynamic else "")


def _scheme(scheme: Scheme) -> tuple[str, ...]:
    stored = numbers(scheme.weights), numbers(scheme.activations)
    bits = f"{scheme.bits_per_weight((4096, 4096)):.3f}"
    return f"`{scheme.name}`", scheme.title, bits, *stored, "yes" if scheme.needs_calibration else "no"


def _in_order(names: frozenset[str], registry: dict[str, Any]) -> list[str]:
    return [name for name in registry if name in names]
