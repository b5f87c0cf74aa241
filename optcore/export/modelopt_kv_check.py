"""Scales of a quantized KV cache, as TensorRT-LLM's fused q/k/v layer reads them.

Source: `load_kv_scales` in `tensorrt_llm/_torch/modules/linear.py`: it takes the largest of the group's, asserts that
keys and values come together, and computes with 1 where there is none.
"""

import re
from collections.abc import Iterator

from optcore.export.modelopt_description import Description
from optcore.export.raw_reader import RawFiles
from optcore.export.scale_check import scale_faults

_PLACE = re.compile(r"(?P<attention>.*?)(?:\.(?:k|v|qkv)_proj)?\.(?P<kind>[kv])_(?P<what>scale|bias)")


def check_kv_cache(files: RawFiles, description: Description) -> Iterator[str]:
    """Scales and biases that lack their other half, that nothing describes, or of another form."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in sorted(files.names):
        if place := _PLACE.fullmatch(name):
            found.setdefault((place["attention"], place["what"]), {})[place["kind"]] = name
    wanted = {"FP8": {"scale"}, "NVFP4": {"scale"}, "NVFP4_AFFINE": {"scale", "bias"}}.get(description.kv_cache or "")
    for what in sorted((wanted or set()) - {what for _, what in found}):
        yield f"`kv_cache_quant_algo` is {description.kv_cache}, and no layer has a k_{what}"
    for (attention, what), halves in found.items():
        if what not in (wanted or ()):
            yield f"{', '.join(halves.values())}: a KV cache in {description.kv_cache} has none"
        elif len(halves) == 1:
            other = "v" if "k" in halves else "k"
            yield f"{attention} has {', '.join(halves.values())} and no {other}_{what}; they are loaded together"
        for name in halves.values():
            yield from _form(files, name, what)


def _form(files: RawFiles, name: str, what: str) -> Iterator[str]:
    if what == "bias":
        shape = files.shape(name)
        if len(shape) != 4 or shape[0] != 1 or shape[2] != 1:
            yield f"{name} has the shape {shape}, and (1, heads, 1, values) is read"
    elif files.dtype(name) != "F32" or files.shape(name) != ():
        yield f"{name} is {files.dtype(name)} {files.shape(name)}, and a float32 number is read"
    else:
        yield from scale_faults(files, name)
