"""Whether TensorRT-LLM's PyTorch backend takes a Model Optimizer checkpoint, without TensorRT-LLM.

Its loader says of most faults nothing, or raises deep in a worker. What it reads and asserts, in these files of
https://github.com/NVIDIA/TensorRT-LLM, is asked here of the files as they lie in the folder:
`tensorrt_llm/_torch/model_config.py` (`load_modelopt_quant_config`), `tensorrt_llm/quantization/modelopt_config.py`
(both descriptions, and which one wins), `_torch/models/modeling_utils.py` (which layers are excluded, formats of fused
layers and of experts), `_torch/modules/linear.py` and `_torch/modules/fused_moe/quantization.py` (tensors and scales).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optcore.export.modelopt_description import Description, disagreements
from optcore.export.modelopt_groups import experts_of, fused_group
from optcore.export.modelopt_kv_check import check_kv_cache
from optcore.export.modelopt_layouts import LAYOUTS, MODEL, SCALES, LinearLayout
from optcore.export.raw_reader import RawFiles
from optcore.export.scale_check import scale_faults

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_TABLES = ("embed", "wte", "wpe")
"""Parts of the names of embeddings, which no loader takes for a linear layer."""


def check_modelopt(folder: Path) -> list[str]:
    """Every violation as a sentence that names the tensor or the key; none where the loader takes the folder."""
    config = json.loads((folder / "config.json").read_text())
    nested, flat = json.loads((folder / "hf_quant_config.json").read_text()), config.get("quantization_config") or {}
    found = list(disagreements(nested, flat))
    description = Description(nested.get("quantization") or {})
    if faults := list(description.faults()):
        return found + faults  # nothing can be said of tensors whose format has no name
    files = RawFiles(folder)
    checker = _Tensors(files, description, _model_dtype(config))
    return [*found, *checker.coverage(), *checker.layers(), *checker.groups(), *check_kv_cache(files, description)]


def _model_dtype(config: dict[str, Any]) -> str:
    text = {**config, **(config.get("text_config") or {})}
    return _DTYPES.get(str(text.get("dtype") or text.get("torch_dtype")), "BF16")


class _Tensors:
    """The linear layers in the files, beside what the description says of them."""

    def __init__(self, files: RawFiles, description: Description, dtype: str) -> None:
        self.files, self.description, self.dtype = files, description, dtype
        matrices = [n.removesuffix(".weight") for n in sorted(files.names) if self._is_matrix(n)]
        self.quantized = {name: None for name in matrices if self._is_quantized(name)}  # sets that keep their order
        self.plain = {name: None for name in matrices if name not in self.quantized}
        self.linears = self.quantized | self.plain

    def coverage(self) -> Iterator[str]:
        """Layers and scales that the description contradicts."""
        for name in self.quantized:
            if self.description.excludes(name):
                yield f"{name} is quantized, and `exclude_modules` says that it is not"
            elif self.description.algorithm(name) is None:
                yield f"{name} is quantized, and `quantized_layers` does not list it"
        for name in self.plain:
            if not self.description.excludes(name) and not any(part in name for part in _TABLES):
                yield f"{name} is not quantized, and `exclude_modules` does not list it"
        for name in sorted(self.description.listed - self.quantized.keys()):
            yield f"{name} is listed in `quantized_layers`, and is not quantized"
        for name in sorted(self.files.names):
            module, _, suffix = name.rpartition(".")
            if suffix in SCALES and f"{module}.weight" not in self.files.names:
                yield f"{name} is the scale of a weight that is not there"

    def layers(self) -> Iterator[str]:
        """Tensors of each quantized layer that are missing, of another form, or no numbers."""
        for name in self.quantized:
            algorithm = self.description.algorithm(name)
            if algorithm is not None:
                yield from self._layer(name, algorithm)

    def groups(self) -> Iterator[str]:
        """Layers that run as one matrix, and experts of one block, whose formats or scales are not the same."""
        told = {name: self.description.algorithm(name) for name in self.quantized}
        blocks: dict[str, list[str]] = {}
        for name in self.quantized:
            blocks.setdefault(experts_of(name), []).append(name)
            group = fused_group(name, self.linears)
            if name == group[0] or group[0] in self.plain:
                yield from self._group(group)
        for block, names in blocks.items():
            if block and len({told[name] for name in names}) > 1:
                yield f"{block} has experts in several formats, and the loader gives all of them that of the first"

    def _is_matrix(self, tensor: str) -> bool:
        module, _, suffix = tensor.rpartition(".")
        return suffix == "weight" and (len(self.files.shape(tensor)) == 2 or self._is_quantized(module))

    def _is_quantized(self, name: str) -> bool:
        return self.files.dtype(f"{name}.weight") in ("U8", "F8_E4M3") or f"{name}.weight_scale" in self.files.names

    def _layer(self, name: str, algorithm: str) -> Iterator[str]:
        layout = LAYOUTS[algorithm]
        wanted = self._wanted(name, layout)
        for suffix in sorted(SCALES - wanted):
            if f"{name}.{suffix}" in self.files.names:
                yield f"{name}.{suffix} is not read by {algorithm} here"
        rows, columns = (n * m for n, m in zip(self.files.shape(f"{name}.weight"), layout.packing, strict=True))
        if columns % layout.group or rows % layout.block:
            yield f"{name}.weight is {rows} x {columns}, which groups of {layout.group} do not divide"
            return
        for suffix in sorted(wanted):
            yield from self._tensor(f"{name}.{suffix}", algorithm, layout, (rows, columns))

    def _wanted(self, name: str, layout: LinearLayout) -> set[str]:
        """A fused layer's input scale is the work of the norm before it, and only experts keep one in the file."""
        is_fused = len(fused_group(name, self.quantized)) > 1 and not experts_of(name)
        return set(layout.tensors) - ({"pre_quant_scale"} if is_fused else set())

    def _tensor(self, name: str, algorithm: str, layout: LinearLayout, shape_NK: tuple[int, int]) -> Iterator[str]:
        if name not in self.files.names:
            yield f"{name} is missing, and {algorithm} reads it"
            return
        suffix = name.rpartition(".")[2]
        stored = layout.tensors[suffix]
        dtype, shape = self.dtype if stored.dtype == MODEL else stored.dtype, stored.shape(*shape_NK, layout.group)
        if self.files.dtype(name) != dtype:
            yield f"{name} is {self.files.dtype(name)}, and {algorithm} stores it as {dtype}"
        elif self.files.shape(name) != shape:
            yield f"{name} has the shape {self.files.shape(name)}, and {algorithm} reads {shape}"
        elif suffix != "weight":
            yield from scale_faults(self.files, name, signed=suffix in layout.signed)

    def _group(self, group: tuple[str, ...]) -> Iterator[str]:
        algorithms = {self.description.algorithm(name) if name in self.quantized else None for name in group}
        if len(algorithms) > 1:
            yield f"{', '.join(group)} run as one matrix, and have several formats"
            return
        algorithm = algorithms.pop()
        for suffix in LAYOUTS[algorithm].shared if algorithm else ():
            there = [f"{name}.{suffix}" for name in group if f"{name}.{suffix}" in self.files.names]
            if len({self.files.bits(name).tobytes() for name in there}) > 1:
                yield f"{', '.join(there)} are not the same, and the loader asserts that they are"
