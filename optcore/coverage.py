"""What was really quantized: bytes before and after by class of tensor, tokens by expert, layers that fell back.

Read from the headers of the files, so nothing is taken on trust from the pass that wrote them.
"""

import re
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

from optcore.quantization import Quantization, QuantizedLinear
from optcore.report import Coverage, TensorClass
from optcore.schemes import PRESETS
from optcore.sizes import contained, tensor_sizes, weight_files

_EXPERT = re.compile(r"(?<=\.experts)\.\d+\..*")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def coverage(description: Quantization, source: Path, exported: Path) -> Coverage:
    """Compare the source's tensors with the exported ones, class by class, the largest first.

    GGUF and ONNX name and lay out tensors in their own ways: there what is quantized has the bytes of its format, and
    all else those that it had.
    """
    before = _sizes(source)
    before, after = (before, dict(before)) if contained(exported) else _taken_apart(before, _sizes(exported))
    linears = {
        name if name in before else _EXPERT.sub("", name): linear for name, linear in description.matrices.items()
    }
    if contained(exported):
        after |= {name: _in_format(before[name], linear) for name, linear in linears.items()}
    classes: dict[str, list[str]] = {}
    for module in before:
        classes.setdefault(_NUMBER.sub("*", module), []).append(module)
    rows = [_row(name, modules, linears, before, after) for name, modules in classes.items()]
    reached = [
        linear.tokens for name, linear in description.linears.items() if linear.tokens is not None and _is_expert(name)
    ]
    return Coverage(
        classes=tuple(sorted(rows, key=lambda row: -row.parameters)),
        quantized_share=sum(row.quantized for row in rows) / max(1, sum(row.parameters for row in rows)),
        expert_tokens=(min(reached), max(reached)) if reached else None,
        experts_without_tokens=sum(tokens == 0 for tokens in reached),
        fallbacks={name: linear.fallback for name, linear in description.matrices.items() if linear.fallback},
    )


def _row(
    name: str,
    modules: list[str],
    linears: Mapping[str, QuantizedLinear],
    before: Mapping[str, "_Size"],
    after: Mapping[str, "_Size"],
) -> TensorClass:
    quantized = [module for module in modules if module in linears]
    return TensorClass(
        name=name,
        tensors=len(modules),
        parameters=sum(before[module][0] for module in modules),
        quantized=sum(before[module][0] for module in quantized),
        schemes=tuple(sorted({linears[module].scheme for module in quantized})),
        layers=_layers(modules, linears),
        source_bytes=sum(before[module][1] for module in modules),
        result_bytes=sum(after[module][1] for module in modules if module in after),
    )


def _in_format(size: "_Size", linear: QuantizedLinear) -> "_Size":
    """Of a weight in the format that it got; a format of whole rows has few scales beside its codes."""
    elements, _ = size
    return elements, round(elements * PRESETS[linear.scheme].bits_per_weight((1, elements)) / 8)


def _layers(modules: list[str], linears: Mapping[str, QuantizedLinear]) -> dict[str, str]:
    """Which layers got which format, where they differ; `none` for those left as they were."""
    numbers: dict[str, set[int]] = {}
    for module in modules:
        number = _NUMBER.search(module)
        scheme = linears[module].scheme if module in linears else "none"
        numbers.setdefault(scheme, set()).add(int(number.group()) if number else 0)
    return {scheme: _ranges(sorted(found)) for scheme, found in numbers.items()} if len(numbers) > 1 else {}


def _ranges(numbers: list[int]) -> str:
    """Such as `0-3, 5`."""
    placed = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])  # within a run both rise by one
    runs = [[number for _, number in run] for _, run in placed]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


_Size = tuple[int, int]


def _taken_apart(before: dict[str, _Size], after: dict[str, _Size]) -> tuple[dict[str, _Size], dict[str, _Size]]:
    """Where the source has all experts of a layer in a few tensors and the result has them one by one: one module."""
    apart = {_EXPERT.sub("", name) for name in after if name not in before and _EXPERT.search(name)}
    folders = {name.removesuffix(".experts"): name for name in apart}

    def whole(name: str) -> str:
        if name in after or name in apart:
            return name
        return folders.get(name.rpartition(".")[0], name)

    def part(name: str) -> str:
        return name if name in before else _EXPERT.sub("", name)

    return _merged(before, whole), _merged(after, part)


def _merged(sizes: Mapping[str, _Size], key: Callable[[str], str]) -> dict[str, _Size]:
    found: dict[str, _Size] = {}
    for name, (elements, held) in sizes.items():
        count, before = found.get(key(name), (0, 0))
        found[key(name)] = (count + elements, before + held)
    return found


def _sizes(folder: Path) -> dict[str, _Size]:
    """Parameters and bytes by module: codes, scales and biases of a linear layer count as one."""
    sizes: dict[str, _Size] = {}
    for path in weight_files(folder):
        for name, (elements, held) in tensor_sizes(path).items():
            module = name.rpartition(".")[0] or name
            count, before = sizes.get(module, (0, 0))
            sizes[module] = (count + elements, before + held)
    return sizes


def _is_expert(name: str) -> bool:
    return ".experts." in name
