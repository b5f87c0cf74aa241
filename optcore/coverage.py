"""What was really quantized: bytes before and after by class of tensor, tokens by expert, layers that fell back.

Read from the headers of the files, so nothing is taken on trust from the pass that wrote them.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from optcore.quantization import Quantization
from optcore.report import Coverage, TensorClass
from optcore.sizes import tensor_sizes, weight_files

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def coverage(description: Quantization, source: Path, exported: Path) -> Coverage:
    """Compare the source's tensors with the exported ones, class by class, the largest first."""
    before, after = _sizes(source), _sizes(exported)
    classes: dict[str, list[str]] = {}
    for module in before:
        classes.setdefault(_NUMBER.sub("*", module), []).append(module)
    rows = [_row(name, modules, description, before, after) for name, modules in classes.items()]
    reached = [
        linear.tokens for name, linear in description.linears.items() if linear.tokens is not None and _is_expert(name)
    ]
    return Coverage(
        classes=tuple(sorted(rows, key=lambda row: -row.parameters)),
        quantized_share=sum(row.quantized for row in rows) / max(1, sum(row.parameters for row in rows)),
        expert_tokens=(min(reached), max(reached)) if reached else None,
        experts_without_tokens=sum(tokens == 0 for tokens in reached),
        fallbacks={name: linear.fallback for name, linear in description.linears.items() if linear.fallback},
    )


def _row(
    name: str,
    modules: list[str],
    description: Quantization,
    before: Mapping[str, "_Size"],
    after: Mapping[str, "_Size"],
) -> TensorClass:
    linears = description.linears
    quantized = [module for module in modules if module in linears]
    return TensorClass(
        name=name,
        tensors=len(modules),
        parameters=sum(before[module][0] for module in modules),
        quantized=sum(before[module][0] for module in quantized),
        schemes=tuple(sorted({linears[module].scheme for module in quantized})),
        source_bytes=sum(before[module][1] for module in modules),
        result_bytes=sum(after[module][1] for module in modules if module in after),
    )


_Size = tuple[int, int]


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
