"""Attention heads made zeros of at full shape, for models whose configuration cannot say that there are fewer.

What is removed goes as zeros of the output projection's columns and of whatever outputs only these heads read. That it
is the old model without them is proved before it counts.

Legend: P heads of a layer, K inputs of the output projection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.links import link_companions
from optcore.restructure.activity import Measured, measure
from optcore.restructure.attention import attention_of, rows_of
from optcore.restructure.choice import StoredWeights, chosen, compensated, needs_text
from optcore.restructure.probe import check_same, probe_logits
from optcore.restructure.units import Unit
from optcore.restructure.width_plan import Plan, one_each
from optcore.sparsity import UNSTRUCTURED, SparseTensor, Sparsity
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import probe_state
from optcore.streaming.rewrite import layer_tensors, write_outside
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune

_NOTHING = "nothing: heads are zeros at full shape, and every engine multiplies by them"


def heads_plan(decoder: Decoder, technique: "Prune") -> Plan:
    """The heads of each layer to choose among. Raises `RecipeError` for a model whose heads cannot be told apart."""
    probe, plan = probe_state(decoder), Plan({})
    cut = technique.cuts["heads"]
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            found = attention_of(decoder, index, layer, probe)
            if found is None:
                continue
            keeps = one_each(cut, found.heads)
            output = layer.get_submodule(found.output)
            if keeps < found.heads and not rows_of(
                decoder, index, layer, probe, found.output, _gone_K(torch.arange(keeps), found.heads, output)
            ):
                raise _refused(decoder, f"the heads that {found.output} of layer {index} reads cannot be told apart")
            if technique.compensate and output.bias is None:
                raise _refused(decoder, f"`compensate` adds to biases, and {found.output} has none")
            reader = f"{decoder.layer_name(index)}.{found.output}"
            plan.units.append(Unit("heads", reader, found.heads, keeps, ()))
    if not plan.units:
        raise _refused(decoder, "no layer of it has attention that is followed by a linear layer")
    return plan


def mask_heads(run: "Run", technique: "Prune") -> None:
    """Write `run.checkpoint` to `run.out` with zeros for the heads that go, and `sparsity.json`."""
    decoder = Decoder(run.checkpoint, dtype=torch.float32)
    plan = heads_plan(decoder, technique)
    weights = StoredWeights(decoder)
    measured = measure(run, decoder, plan) if needs_text(plan, technique) else Measured()
    kept = chosen(run.seed, plan, technique, weights, measured)
    biases = compensated(plan, kept, technique, weights, measured)
    masking = _Masking(decoder, {unit.reader: (unit, kept_P) for unit, kept_P in zip(plan.units, kept, strict=True)})
    masking.write(run, biases)
    link_companions(run.checkpoint, run.out)
    Sparsity(method="heads", tensors=masking.tensors, accelerated_by=_NOTHING).save(run.out)
    check_same(
        probe_logits(Decoder(run.out, dtype=torch.float32)),
        probe_logits(decoder, around=masking.without(biases)),
        f"a {type(decoder.model).__name__} with zeros for those heads is not the model without them",
        "prune `depth` or `ffn` of this model",
    )
    _tell(run, plan, kept, masking)


class _Masking:
    """The heads that go, by the output projection that reads them."""

    def __init__(self, decoder: Decoder, cuts: dict[str, tuple[Unit, torch.Tensor]]) -> None:
        self._decoder, self._cuts = decoder, cuts
        self._probe = probe_state(decoder)
        self.tensors: dict[str, SparseTensor] = {}
        """Weights with zeros. Zeros of biases are not listed: nothing reads them, so no gradient reaches them."""

    def write(self, run: "Run", biases: dict[str, torch.Tensor]) -> None:
        """Read and write layer by layer."""
        decoder, writer = self._decoder, TensorWriter(run.out)
        write_outside(decoder, writer, {})
        for index in range(len(decoder)):
            with decoder.layer(index, keep_stored=True) as layer:
                silenced = self._silence(index, layer, biases)
                tensors = layer_tensors(decoder, index, layer)
                for name, tensor in tensors.items():
                    writer.add(name, tensor)
                for name in silenced:
                    count, total = int(tensors[name].count_nonzero()), tensors[name].numel()
                    self.tensors[name] = SparseTensor(pattern=UNSTRUCTURED, nonzero=count, total=total)
            run.progress("searching", index + 1, len(decoder))
        writer.close()

    def without(self, biases: dict[str, torch.Tensor]) -> Any:
        """Around layers whose output projections see zeros where heads went, and have the new biases."""

        @contextmanager
        def around(index: int, layer: nn.Module) -> Iterator[None]:
            handles = []
            for reader, path, gone_K in self._of(index, layer):
                output = layer.get_submodule(path)
                if (bias := biases.get(f"{reader}.bias")) is not None:
                    output.bias.data = bias.to(output.bias)
                handles.append(output.register_forward_pre_hook(_zeros_at(gone_K)))
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

        return around

    def _of(self, index: int, layer: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
        """The layer's output projections: name in the model, path in the layer, inputs [K] that go."""
        own = f"{self._decoder.layer_name(index)}."
        for reader, (unit, kept_P) in self._cuts.items():
            if reader.startswith(own):
                path = reader.removeprefix(own)
                yield reader, path, _gone_K(kept_P, unit.parts, layer.get_submodule(path))

    def _silence(self, index: int, layer: nn.Module, biases: dict[str, torch.Tensor]) -> list[str]:
        """Set to zero what belongs to the heads that go; the stored names of the weights that it is in."""
        changed = []
        for reader, output, gone_K in self._of(index, layer):
            rows = rows_of(self._decoder, index, layer, self._probe, output, gone_K)
            for path, rows_N in rows.items():
                module = layer.get_submodule(path)
                for parameter in module.parameters():
                    parameter.data[rows_N] = 0
                changed.append(path)
            module = layer.get_submodule(output)
            module.weight.data[:, gone_K] = 0
            if (bias := biases.get(f"{reader}.bias")) is not None:
                module.bias.data = bias.to(module.bias)
            changed.append(output)
        sources = self._decoder.names.sources
        return [sources[f"{self._decoder.layer_name(index)}.{path}.weight"].stored for path in changed]


def _gone_K(kept_P: torch.Tensor, heads: int, output: nn.Module) -> torch.Tensor:
    """Which inputs of an output projection go."""
    weight: Any = output.weight
    gone_P = torch.ones(heads, dtype=torch.bool).index_fill(0, kept_P, False)
    return gone_P.repeat_interleave(weight.shape[1] // heads).to(weight.device)


def _zeros_at(gone_K: torch.Tensor) -> Any:
    return lambda _, args: (args[0].masked_fill(gone_K, 0), *args[1:])


def _tell(run: "Run", plan: Plan, kept: list[torch.Tensor], masking: _Masking) -> None:
    gone = sum(unit.parts - unit.keeps for unit in plan.units)
    heads = sum(unit.parts for unit in plan.units)
    tensors = masking.tensors.values()
    zeros = sum(one.total - one.nonzero for one in tensors)
    run.notice(
        f"{gone} of {heads} attention heads are zeros now, {zeros:,} weights of {len(tensors)} tensors: the checkpoint "
        "loads everywhere and is faster nowhere, and its files are as large as before"
    )
    pairs = zip(plan.units, kept, strict=True)
    run.results["heads"] = {"kept": {unit.reader: kept_P.tolist() for unit, kept_P in pairs}, "zeros": zeros}


def _refused(decoder: Decoder, why: str) -> RecipeError:
    return RecipeError(
        f"{type(decoder.model).__name__} cannot lose heads: {why}",
        remedy="leave `heads` out, or prune `depth` or `ffn`",
        field="/chain",
    )
