"""Lays a quantized checkpoint out as compressed-tensors files, and proves them.

The files of a quantized checkpoint are in this layout already, so they are linked: a model is written once.
"""

import json
from typing import TYPE_CHECKING, Any

from optcore.calibration.digest import weight_digest
from optcore.errors import ExportMismatch
from optcore.export.compressed_tensors_config import quantization_config
from optcore.export.compressed_tensors_decoder import CompressedDecoder
from optcore.links import link, link_companions, link_forms
from optcore.quantization import Quantization, load_quantization
from optcore.sizes import tensor_sizes

if TYPE_CHECKING:
    from optcore.run import Run


def write_checkpoint(run: "Run") -> None:
    """Write `run.checkpoint`, quantized, to `run.out`; raises `ExportMismatch` when a tensor does not decode."""
    description = load_quantization(run.checkpoint)
    assert description is not None
    _link_files(run, description)
    link_companions(run.checkpoint, run.out)
    link_forms(run.checkpoint, run.out)
    config: dict[str, Any] = json.loads((run.checkpoint / "config.json").read_text())
    config["quantization_config"] = quantization_config(description)
    (run.out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    verify(run, description)


def _link_files(run: "Run", description: Quantization) -> None:
    """Number the files and write the index that says which tensor is in which."""
    count, weight_map, total_bytes = len(description.files), {}, 0
    for number, name in enumerate(description.files, start=1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        link(run.checkpoint / name, run.out / file)
        sizes = tensor_sizes(run.out / file)
        weight_map.update(dict.fromkeys(sizes, file))
        total_bytes += sum(held for _, held in sizes.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (run.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def verify(run: "Run", description: Quantization) -> None:
    """Decode what lies on the disk; every weight must be, bit for bit, the one that the pass simulated."""
    decoder = CompressedDecoder(run.out)
    for count, (name, linear) in enumerate(description.linears.items(), start=1):
        if weight_digest(decoder.weight(name)) != linear.digest:
            raise ExportMismatch(f"{name} does not decode to the simulated weight")
        run.progress("verifying", count, len(description.linears))
