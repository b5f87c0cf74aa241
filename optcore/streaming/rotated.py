"""A checkpoint whose rotations are folded into its weights, written shard by shard with one layer in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.algorithms.hadamard import largest_block
from optcore.links import link_companions
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.groups import probe_state
from optcore.streaming.replay import has_rows_of
from optcore.streaming.rewrite import layer_tensors, write_outside
from optcore.streaming.rotation import LayerRotation, Rotation, cannot_rotate, fold_gain, rotate_readers
from optcore.streaming.structure import norm_offset
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.rotate import Rotate

_CLOSE = 1e-4


def rotate_checkpoint(run: "Run", technique: "Rotate") -> None:
    """Write `run.checkpoint`, rotated, to `run.out`: the same function in other weights."""
    decoder = Decoder(run.checkpoint, torch.device("cpu"))  # in float32: what is stored is rounded once
    probe = probe_state(decoder)
    rotation = _residual_rotation(decoder, technique, run.seed) if technique.residual else None
    ends = _Ends(decoder, probe).rotated(rotation) if rotation else {}
    writer = TensorWriter(run.out)
    left_out = write_outside(decoder, writer, ends)
    layers = LayerRotation(decoder, probe, rotation, technique.heads)
    blocks: set[int] = set()
    for index in range(len(decoder)):
        with decoder.layer(index, keep_stored=True) as layer:
            blocks.add(layers.apply(index, layer))
            for name, tensor in layer_tensors(decoder, index, layer).items():
                writer.add(name, tensor)
        run.progress("searching", index + 1, len(decoder))
    writer.close()
    link_companions(run.checkpoint, run.out)
    if _is_tied(decoder) and set(ends) - set(decoder.reader.names):
        _untie(run.out / "config.json")
        run.notice("embeddings and head are separate now: the head took the final norm's gain")
    if left_out:
        run.notice(f"{left_out} tensors that the model does not use were left out: they may read the residual stream")
    run.results["rotation"] = {"residual_block": rotation.block if rotation else 1, "value_blocks": sorted(blocks)}


def _residual_rotation(decoder: Decoder, technique: "Rotate", seed: int) -> Rotation:
    size = int(decoder.model.config.get_text_config().hidden_size)
    return Rotation(size, largest_block(size, technique.block), seed if technique.signs else None)


class _Ends:
    """What lies before the first layer and after the last: the table of tokens, the final norm and the head."""

    def __init__(self, decoder: Decoder, probe: State) -> None:
        self._decoder = decoder
        self._probe = probe
        self._names = {id(module): name for name, module in decoder.model.named_modules()}

    @torch.no_grad()
    def rotated(self, rotation: Rotation) -> dict[str, torch.Tensor]:
        """Rotate them in the model; returns the changed tensors by their names in the checkpoint, float32."""
        model, probe = self._decoder.model, self._probe
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        self._check_table(table)
        norm, offset, plain = self._final_norm(head)
        head.weight = nn.Parameter(head.weight.data.clone(), requires_grad=False)  # it may be the table itself
        is_plain = bool((norm.weight.data + offset == 1).all())
        fold_gain(norm, offset, [head])
        rotate_readers(rotation, [head, table])
        turned = self._decoder.logits(probe._replace(hidden_BTH=rotation(probe.hidden_BTH)))
        if not (turned - plain).norm() <= _CLOSE * plain.norm():
            raise cannot_rotate(self._decoder, "logits of a rotated residual stream are not the same")
        changed = {self._stored(table): table.weight.data, self._stored(norm): norm.weight.data}
        if not (is_plain and _is_tied(self._decoder)):
            changed[self._stored(head)] = head.weight.data
        return changed

    def _check_table(self, table: nn.Module) -> None:
        """The hidden states before the first layer must be rows of the table, up to one factor."""
        hidden = self._probe.hidden_BTH.reshape(-1, self._probe.hidden_BTH.shape[-1])
        rows = table.weight.data[: len(hidden)]
        if rows.shape == hidden.shape:
            factor = (rows * hidden).sum() / rows.square().sum()
            if (hidden - factor * rows).norm() <= _CLOSE * hidden.norm():
                return
        raise cannot_rotate(self._decoder, "its first layer is given more than the embeddings of tokens")

    def _final_norm(self, head: nn.Module | None) -> tuple[nn.Module, float, torch.Tensor]:
        """The norm whose output the head is given, what it adds to its weight, and the logits."""
        if not isinstance(head, nn.Linear):
            raise cannot_rotate(self._decoder, "its head is not a linear layer")
        outputs: list[tuple[nn.Module, torch.Tensor]] = []
        given: list[torch.Tensor] = []
        norms = [module for module in self._outside() if getattr(module.weight, "ndim", 0) == 1]
        handles = [norm.register_forward_hook(lambda norm, _, out: outputs.append((norm, out))) for norm in norms]
        handles.append(head.register_forward_pre_hook(lambda _, args: given.append(args[0])))
        plain = self._decoder.logits(self._probe)
        for handle in handles:
            handle.remove()
        for norm, out in outputs:
            offset = norm_offset(norm, lambda norm=norm: norm(self._probe.hidden_BTH))
            if offset is not None and getattr(norm, "bias", None) is None and has_rows_of(given[0], out):
                return norm, offset, plain
        raise cannot_rotate(self._decoder, "no RMSNorm was found right before its head")

    def _outside(self) -> Iterator[nn.Module]:
        inside = {id(module) for module in self._decoder.layers.modules()}
        for module in self._decoder.model.modules():
            if id(module) not in inside and isinstance(getattr(module, "weight", None), torch.Tensor):
                yield module

    def _stored(self, module: nn.Module) -> str:
        name = f"{self._names[id(module)]}.weight"
        return self._decoder.names.stored_name.get(name, name)


def _is_tied(decoder: Decoder) -> bool:
    return bool(decoder.model.config.get_text_config().tie_word_embeddings)


def _untie(path: Path) -> None:
    config = json.loads(path.read_text())
    config["tie_word_embeddings"] = False
    if "tie_word_embeddings" in config.get("text_config", {}):
        config["text_config"]["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2) + "\n")
