"""A session that is extended in pieces, forked and rolled back computes what one plain pass computes."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import Quantize, streamed_logits
from fixtures.tiny_models import MakeModel

from optcore.errors import RecipeError
from optcore.speculative.key_values import empty_cache
from optcore.speculative.session import Session
from optcore.speculative.target import Features, Target
from optcore.streaming.decoder import Decoder
from optcore.streaming.simulate import Simulation

FAMILIES = ["Llama", "Qwen2", "Mistral", "Gemma2", "Gemma3Text", "GptOss", "Mixtral", "DeepseekV3", "OPT"]
PROMPT, LENGTH = 21, 40  # windows of tiny models hold 16


def _tokens(rows: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(1, 2048, (rows, length), generator=torch.Generator().manual_seed(3))


def _plain(target: Target, tokens_BT: torch.Tensor) -> Features:
    """One pass over all tokens, keys and values rounded as the target's cache says."""
    return target.look({"input_ids": tokens_BT}, empty_cache(target))


def _same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_rejected_leaves_no_trace(tiny_model: MakeModel, family: str) -> None:
    """Three rows of different lengths; chains of which different shares stay, a tree, and a way back."""
    target = Target(tiny_model(family), taps=(1, 0))
    tokens_BT, other_BT = _tokens(3), _tokens(3).flip(1)
    wanted = _plain(target, tokens_BT)
    _same(target.look({"input_ids": tokens_BT}).hidden_BTH, wanted.hidden_BTH)
    logits_BTV = target.model(input_ids=tokens_BT, use_cache=False).logits
    session = Session(target, 3)
    lengths = torch.tensor([PROMPT, PROMPT - 4, PROMPT - 9])
    valid_BT = torch.arange(PROMPT) < lengths[:, None]
    found = session.read(torch.where(valid_BT, tokens_BT[:, :PROMPT], 0), valid_BT)
    _same(found.hidden_BTH[valid_BT], wanted.hidden_BTH[:, :PROMPT][valid_BT])
    rows = torch.arange(3)[:, None]
    for kept in ([5, 2, 0], [1, 1, 3], [0, 5, 4]):
        places_BT = lengths[:, None] + torch.arange(5)
        kept_BT = torch.arange(5) < torch.tensor(kept)[:, None]
        block_BT = torch.where(kept_BT, tokens_BT[rows, places_BT], other_BT[:, :5])
        said_BTV, features = session.extend(block_BT)
        _same(said_BTV[kept_BT], logits_BTV[rows, places_BT][kept_BT])
        for found_BTH, wanted_BTH in zip(features.tapped, wanted.tapped, strict=True):
            _same(found_BTH[kept_BT], wanted_BTH[rows, places_BT][kept_BT])
        session.keep(kept_BT)
        lengths = lengths + torch.tensor(kept)
        assert session.lengths_B.tolist() == lengths.tolist()
    _fork(session, tokens_BT, other_BT, logits_BTV)
    session.crop(torch.tensor([11, 30, 17]))
    assert session.lengths_B.tolist() == [11, int(lengths[1]) + 2, 17]  # a row is never longer than it was
    places_BT = session.lengths_B[:, None] + torch.arange(3)
    _same(session.extend(tokens_BT[rows, places_BT])[0], logits_BTV[rows, places_BT])


def _fork(session: Session, tokens_BT: torch.Tensor, other_BT: torch.Tensor, logits_BTV: torch.Tensor) -> None:
    """Six tokens in three branches; in each row another path is the text's."""
    parents, paths = (-1, -1, 0, 1, 1, -1), [[0, 2], [1, 3], [1, 4]]
    rows, begun = torch.arange(3), session.lengths_B.clone()
    block_BT, kept_BT = other_BT[:, 10:16].clone(), torch.zeros(3, 6, dtype=torch.bool)
    for row, path in enumerate(paths):
        for depth, node in enumerate(path):
            block_BT[row, node] = tokens_BT[row, begun[row] + depth]
            kept_BT[row, node] = True
    said_BTV, _ = session.extend(block_BT, parents_T=parents)
    path_BT = torch.tensor(paths)
    _same(said_BTV[rows[:, None], path_BT], logits_BTV[rows[:, None], begun[:, None] + torch.arange(2)])
    session.keep(kept_BT)
    assert session.lengths_B.tolist() == (begun + 2).tolist()
    places_B1 = session.lengths_B[:, None]
    _same(session.extend(tokens_BT.gather(1, places_B1))[0], logits_BTV[rows[:, None], places_B1])
    session.keep(torch.zeros(3, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("scheme", "more"), [("nvfp4", {"kv_cache": "fp8"}), ("int8", {"kv_cache": "int4"}), ("int8", {})]
)
def test_quantized_targets(quantized: Quantize, scheme: str, more: dict[str, str]) -> None:
    """Weights, inputs, keys and values rounded; the KV cache as evaluation rounds it, layer by layer.

    In float64: float32 sums of other shapes differ in their last bit, and now and then that falls across a rounding.
    """
    checkpoint, tokens_BT = quantized(scheme, **more), _tokens(2)
    streamed = Decoder(checkpoint, dtype=torch.float64)
    wanted_BTV = streamed_logits(streamed, tokens_BT, Simulation(checkpoint)).float()
    target = Target(checkpoint, dtype=torch.float64)
    if more:
        plain = Target(quantized(scheme), dtype=torch.float64)
        plain_BTV = plain.logits(plain.look({"input_ids": tokens_BT}).hidden_BTH)
        assert (plain_BTV - wanted_BTV).norm() > 1e-3 * wanted_BTV.norm()  # the cache's rounding is seen
    _same(target.logits(target.look({"input_ids": tokens_BT}).hidden_BTH), wanted_BTV)
    session, found = Session(target, 2), []
    for begin in range(0, LENGTH, 8):
        logits_BTV, _ = session.extend(torch.cat((tokens_BT[:, begin : begin + 8], tokens_BT[:, :3]), 1))
        session.keep((torch.arange(11) < 8).expand(2, -1))
        found.append(logits_BTV[:, :8])
    _same(torch.cat(found, 1), wanted_BTV)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("Qwen3Next", "a recurrent state cannot be rolled back"),
        ("NemotronH", "a recurrent state cannot be rolled back"),
        ("Lfm2", "a recurrent state cannot be rolled back"),
        ("Bert", "an encoder does not decode"),
        ("Bloom", "masks"),
    ],
)
def test_models_whose_past_cannot_be_rolled_back(tiny_model: MakeModel, family: str, why: str) -> None:
    target = Target(tiny_model(family))
    for _ in range(2):  # refused again, not only the first time
        with pytest.raises(RecipeError, match=why) as caught:
            Session(target, 1)
    assert caught.value.field == "/chain"


def test_blocks_that_nobody_spoke_of_stay(stdlib_model: Path) -> None:
    target, tokens_BT = Target(stdlib_model), _tokens(1)
    session = Session(target, 1)
    for begin in range(0, LENGTH, 10):
        features = session.read(tokens_BT[:, begin : begin + 10])
    _same(features.hidden_BTH, _plain(target, tokens_BT).hidden_BTH[:, -10:])
