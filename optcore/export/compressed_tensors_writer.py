"""Packs a quantized checkpoint into compressed-tensors files, part by part, and proves what it wrote."""

import json
from typing import TYPE_CHECKING, Any

import torch

from optcore.algorithms.packing import pack_int32, pack_nibbles
from optcore.algorithms.rounding import encode_e2m1, grid_of, round_e4m3
from optcore.algorithms.scales import Scales, in_steps
from optcore.errors import ExportMismatch
from optcore.export.compressed_tensors_config import quantization_config
from optcore.export.compressed_tensors_decoder import decode_weight
from optcore.links import link_companions
from optcore.schemes import QuantArgs
from optcore.streaming.reader import TensorReader
from optcore.streaming.simulate import Simulation
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run


def write_checkpoint(run: "Run") -> None:
    """Write `run.checkpoint`, quantized, to `run.out`; raises `ExportMismatch` when a tensor does not decode."""
    simulation = Simulation(run.checkpoint)
    reader = TensorReader(run.checkpoint)
    _write_tensors(run, reader, simulation)
    link_companions(run.checkpoint, run.out)
    _write_config(run, simulation)
    verify(run, reader, simulation)


def pack(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> dict[str, torch.Tensor]:
    """The stored tensors of one linear layer's weight, by their suffix. W is float32 [N, K]."""
    values = in_steps(weight_NK, scales, args)
    if args.type == "float" and args.bits == 8:
        packed = {"weight": round_e4m3(values)}
    elif args.type == "int" and args.bits == 8:
        packed = {"weight": grid_of(args).round(values).to(torch.int8)}
    elif args.type == "int":
        shape = torch.tensor(weight_NK.shape, dtype=torch.int64)
        packed = {"weight_packed": pack_int32(grid_of(args).round(values), args.bits), "weight_shape": shape}
    else:
        packed = {"weight_packed": pack_nibbles(encode_e2m1(values))}
    packed["weight_scale"] = scales.scale
    if scales.global_scale is not None:
        packed["weight_global_scale"] = scales.global_scale
    return packed


def _write_tensors(run: "Run", reader: TensorReader, simulation: Simulation) -> None:
    quantized = {f"{name}.weight": name for name in simulation.description.modules}
    args = simulation.description.preset.weights
    writer = TensorWriter(run.out)
    for count, stored in enumerate(reader.names):
        if stored in quantized:
            name = quantized[stored]
            for suffix, tensor in pack(reader.tensor(stored).float(), simulation.scales(name), args).items():
                writer.add(f"{name}.{suffix}", tensor)
        else:
            writer.add(stored, reader.tensor(stored))
        run.progress("packing", count + 1, len(reader.names))
    for name, tensor in simulation.tensors.items():
        if not name.endswith((".weight_scale", ".weight_global_scale")):
            writer.add(name, tensor)
    writer.close()


def _write_config(run: "Run", simulation: Simulation) -> None:
    config: dict[str, Any] = json.loads((run.checkpoint / "config.json").read_text())
    config["quantization_config"] = quantization_config(simulation.description)
    (run.out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def verify(run: "Run", source: TensorReader, simulation: Simulation) -> None:
    """Decode what lies on the disk and compare every weight with the simulated one, bit for bit."""
    written = TensorReader(run.out)
    names = simulation.description.modules
    for count, name in enumerate(names):
        expected = simulation.weight(name, source.tensor(f"{name}.weight"))
        if not torch.equal(decode_weight(run.out, written, name), expected):
            raise ExportMismatch(f"{name} does not decode to the simulated weight")
        run.progress("verifying", count + 1, len(names))
