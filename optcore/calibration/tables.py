"""The embeddings and the head in few bits, as llama.cpp keeps them: each weight to the nearest value of its format.

Legend: N tokens of the vocabulary, K channels. Layers are measured on the embeddings as they were.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from optcore.algorithms.codes import decode, encode
from optcore.algorithms.packing import pack
from optcore.algorithms.scales import Scales, find_scales
from optcore.calibration.digest import weight_digest
from optcore.importance import Importance
from optcore.mixes import fitting
from optcore.quantization import QuantizedLinear
from optcore.schemes import PRESETS, Scheme
from optcore.streaming.decoder import Decoder
from optcore.tables import tables

if TYPE_CHECKING:
    from optcore.techniques.ptq import Quantizing

_PART_values = 2**26
"""Rounded at a time: no block crosses rows, and a search's temporaries outweigh the largest vocabularies."""


class Table(NamedTuple):
    """A matrix beside the decoder layers that is to be rounded."""

    name: str
    """Of its module in the checkpoint."""
    scheme: Scheme
    is_head: bool
    """Whether logits are made with it."""
    stored: frozenset[str]
    """Tensors of the checkpoint that it takes the place of: itself, and copies of a tied one."""


class RoundedTables(NamedTuple):
    """What became of them."""

    tensors: dict[str, torch.Tensor]
    """Codes and scales, by name in the checkpoint."""
    described: dict[str, QuantizedLinear]


def tables_of(decoder: Decoder, technique: "Quantizing", scheme: str) -> list[Table]:
    """The embeddings and the head where linear layers of this format or mix let them have fewer bits; one where they
    are tied. A table whose rows no block format divides is left alone."""
    formats = tables(technique.tables, scheme, str(decoder.model.config.model_type))
    embedding, head = decoder.model.get_input_embeddings(), decoder.model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        head = None
    is_tied = head is not None and head.weight is embedding.weight
    asked = [(embedding, formats.head if is_tied else formats.embedding, is_tied)]
    if head is not None and not is_tied:
        asked.append((head, formats.head, True))
    return [
        _table(decoder, module, fit, is_head=is_head)
        for module, wanted, is_head in asked
        if wanted and (fit := fitting(wanted, module.weight.shape[1]))
    ]


def _table(decoder: Decoder, module: nn.Module, scheme: str, *, is_head: bool) -> Table:
    path = next(path for path, one in decoder.model.named_modules() if one is module)
    name = decoder.names.stored_module(path)
    stored = f"{name}.weight"
    return Table(name, PRESETS[scheme], is_head, frozenset({stored, *decoder.tied_copies(stored)}))


def round_tables(
    found: list[Table],
    outside: dict[str, torch.Tensor],
    technique: "Quantizing",
    decoder: Decoder,
    head: Importance | None,
) -> RoundedTables:
    """Round tables of the tensors `outside` the layers. `head` is measured of what the head is given."""
    rounded = RoundedTables({}, {})
    for table in found:
        importance = head if table.is_head else None
        weight_NK = outside[f"{table.name}.weight"].to(decoder.device)
        codes_NK, scales = _rounded(weight_NK, table.scheme, technique, decoder.stored_dtype, importance)
        packed = pack(codes_NK, scales, table.scheme.weights)
        rounded.tensors.update({f"{table.name}.{suffix}": tensor for suffix, tensor in packed.items()})
        rounded.described[table.name] = QuantizedLinear(
            scheme=table.scheme.name,
            digest=weight_digest(decode(codes_NK, scales, table.scheme.weights)),
            tokens=importance.tokens if importance else None,
        )
    return rounded


def _rounded(
    weight_NK: torch.Tensor,
    scheme: Scheme,
    technique: "Quantizing",
    dtype: torch.dtype,
    importance: Importance | None,
) -> tuple[torch.Tensor, Scales]:
    """Codes and scales, by the technique's search; what is looked up has no inputs to weigh channels by."""
    args, method = scheme.weights, technique.scale_search
    if method == "hessian" and importance is None:
        method = "mse"
    weighing_K = importance.mean_square_K.to(weight_NK.device) if importance else None
    codes, scales = [], []
    for part_NK in weight_NK.split(max(1, _PART_values // weight_NK.shape[1])):
        (own,) = find_scales([part_NK.float()], args, method, dtype, weighing_K)
        codes.append(encode(part_NK.float(), own, args))
        scales.append(own)
    columns = zip(*scales, strict=True)  # a block format has or lacks a kind of scale in every part
    return torch.cat(codes), Scales(*(None if each[0] is None else torch.cat(each) for each in columns))
