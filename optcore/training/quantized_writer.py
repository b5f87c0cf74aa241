"""The codes of trained weights, in the files that a quantizing stage leaves: dense weights stay as they were.

Shapes: N outputs, K inputs of a linear layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optcore.algorithms.codes import decode, encode
from optcore.algorithms.packing import pack
from optcore.calibration.digest import weight_digest
from optcore.links import link, link_checkpoint
from optcore.quantization import OUTSIDE, Quantization, QuantizedLayer, load_quantization
from optcore.training.fake_quant import FakeQuantLinear, ScalePolicy
from optcore.training.ranks import Ranks
from optcore.training.student import Student

if TYPE_CHECKING:
    from optcore.run import Run


@torch.no_grad()
def write_quantized(run: "Run", student: Student, ranks: Ranks, policy: ScalePolicy) -> None:
    """Write the student to `run.out`. Every process must call it; the first one writes."""
    description = student.description
    assert description
    layers = []
    for index, record in enumerate(description.layers):
        with ranks.gathered(student.layers[index]):
            if ranks.is_first:
                tensors = load_file(run.checkpoint / record.file)
                layers.append(rewritten(student.linears, student.plain_parameters(index), record, tensors))
                save_file({name: one.contiguous().cpu() for name, one in tensors.items()}, run.out / record.file)
    if ranks.is_first:
        describe_trained(run, description, layers, policy)
    ranks.wait()


def restore_quantized(run: "Run") -> None:
    """Leave in `run.out` the quantized checkpoint that was read, in links: its codes and its scales."""
    description = load_quantization(run.checkpoint)
    assert description
    for file in description.files:
        link(run.checkpoint / file, run.out / file)
    link_checkpoint(run.checkpoint, run.out)
    description.save(run.out)


def describe_trained(
    run: "Run", description: Quantization, layers: Sequence[QuantizedLayer], policy: ScalePolicy
) -> None:
    """Everything beside the files of `layers`; `description` is what they were before, `policy` what scales did."""
    link(run.checkpoint / OUTSIDE, run.out / OUTSIDE)
    link_checkpoint(run.checkpoint, run.out)
    left_alone = any(layer.linears and layer in description.layers for layer in layers)
    searched = policy == "learn" or (description.searched and (policy == "freeze" or left_alone))
    update = {"layers": tuple(layers), "searched": searched, "trained": True}
    description.model_copy(update=update).save(run.out)


def rewritten(
    modules: Mapping[str, FakeQuantLinear],
    plain: Iterable[tuple[str, nn.Parameter]],
    record: QuantizedLayer,
    tensors: dict[str, torch.Tensor],
) -> QuantizedLayer:
    """Put what was trained into a layer's tensors; returns what is to be said of it.

    `modules` are its simulated linears and perhaps other layers', `plain` its other parameters, by checkpoint name.
    """
    linears = dict(record.linears)
    for name in linears:
        module = modules[name]
        codes, digest = _codes(module)
        tensors.update({f"{name}.{suffix}": tensor.clone() for suffix, tensor in codes.items()})
        linears[name] = linears[name].model_copy(update={"digest": digest, "loss": None})
    changed = dict.fromkeys(record.changed)
    for stored, parameter in plain:
        if parameter.requires_grad and stored in tensors:
            tensors[stored] = parameter.to(tensors[stored].dtype)
            changed[stored] = None
    return record.model_copy(update={"linears": linears, "changed": tuple(changed)})


def _codes(module: FakeQuantLinear) -> tuple[dict[str, torch.Tensor], str]:
    """The stored tensors of a weight, and the digest of what they stand for."""
    args = module.scheme.weights
    weight_NK, scales = module.merged().float(), module.scales()
    codes_NK = encode(weight_NK, scales, args)
    return pack(codes_NK, scales, args), weight_digest(decode(codes_NK, scales, args))
