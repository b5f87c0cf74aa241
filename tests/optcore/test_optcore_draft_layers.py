"""The layer of our drafts against transformers' own, and drafts against whole sequences written out."""

import torch
from fixtures.drafting import COUNT, made, random_text, stirred
from fixtures.tiny_models import MakeModel
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from optcore.drafts.block import Block
from optcore.drafts.layers import DecoderLayer, KeysValues, Text, initialise
from optcore.drafts.mtp import Mtp
from optcore.drafts.sizes import Sizes
from optcore.speculative.target import Target

T = 7
SIZES = Sizes(
    hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=10, rope_theta=500.0
)


def _turns(positions: torch.Tensor, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, T, h] in float64, as transformers hands them to layers."""
    exponents = torch.arange(0, sizes.head_dim, 2, dtype=torch.float64) / sizes.head_dim
    angles = positions.double()[:, None] / sizes.rope_theta**exponents
    angles = torch.cat((angles, angles), -1)[None]
    return angles.cos(), angles.sin()


def _theirs(layer: DecoderLayer, head_norms: bool) -> torch.nn.Module:
    """Transformers' layer with the same parameters, by their names; its norms, which round to float32, are torch's."""
    sizes = layer.self_attn.sizes
    config = (Qwen3Config if head_norms else LlamaConfig)(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
        rms_norm_eps=sizes.rms_norm_eps,
        num_hidden_layers=1,
    )
    config._attn_implementation = "sdpa"  # the eager one takes its softmax in float32
    theirs = (Qwen3DecoderLayer if head_norms else LlamaDecoderLayer)(config, 0).double()
    theirs.load_state_dict(layer.state_dict())
    for name, module in layer.named_modules():
        if isinstance(module, torch.nn.RMSNorm):
            theirs.set_submodule(name, module)
    return theirs.eval()


def _causal(length: int) -> torch.Tensor:
    above = torch.ones(length, length, dtype=torch.bool).triu(1)
    return torch.zeros(1, 1, length, length, dtype=torch.float64).masked_fill(above, -torch.inf)


def test_a_layer_is_what_transformers_computes() -> None:
    """A text of which each token sees those before it, and itself as its guess."""
    for head_norms in (False, True):
        layer = DecoderLayer(SIZES, head_norms).double()
        initialise(layer, seed=1, deviation=0.3)
        generator = torch.Generator().manual_seed(2)
        inputs_BTH = torch.randn(2, T, SIZES.hidden_size, dtype=torch.float64, generator=generator)
        positions_BT = torch.arange(3, 3 + T).expand(2, -1)
        before = torch.ones(T, T, dtype=torch.bool).tril(-1).expand(2, -1, -1)
        seen = layer.keys_values(inputs_BTH, positions_BT)
        own = KeysValues(*(part[:, :, None] for part in seen))
        found = layer(inputs_BTH[:, :, None], positions_BT[:, :, None], Text(seen, before), own)[:, :, 0]
        turns = _turns(positions_BT[0], SIZES)
        wanted = _theirs(layer, head_norms)(inputs_BTH, attention_mask=_causal(T), position_embeddings=turns)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        torch.testing.assert_close(found, wanted.reshape(found.shape), rtol=0, atol=1e-12)


def test_a_draft_draws_its_parameters_from_its_seed(tiny_model: MakeModel) -> None:
    target = Target(tiny_model("Llama"), taps=(0,))
    first, same, other = (Mtp(target, made("mtp", target).vocabulary, seed=seed).eh_proj.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@torch.no_grad()
def test_mtp_answers_as_its_steps_written_behind_the_text(tiny_model: MakeModel) -> None:
    """At every t: one causal sequence of the text's rows and the steps so far, through transformers' layer."""
    target = Target(tiny_model("Llama"), taps=())
    draft = stirred(made("mtp", target))
    assert isinstance(draft, Mtp)
    text, theirs = random_text(target, 1, T + COUNT + 1), _theirs(draft.layer, head_norms=False)
    answers = text.answers(draft)
    for t in range(T):
        rows = [
            _mtp_input(draft, target, int(text.tokens_BT[0, i + 1]), text.features.hidden_BTH[0, i], i)
            for i in range(t + 1)
        ]
        for k in range(COUNT):
            length = t + 1 + k
            turns = _turns(torch.arange(length), draft.sizes)
            out = theirs(torch.stack(rows)[None], attention_mask=_causal(length), position_embeddings=turns)
            last = (out[0] if isinstance(out, tuple) else out).reshape(length, -1)[-1]
            torch.testing.assert_close(answers[k][0, t], draft.norm(last), rtol=0, atol=1e-9)
            rows.append(_mtp_input(draft, target, int(text.tokens_BT[0, length + 1]), last, length))


def _mtp_input(draft: Mtp, target: Target, token: int, hidden_H: torch.Tensor, position: int) -> torch.Tensor:
    """One row of what the layer reads."""
    embedding_H = target.embeddings.weight[token].double() * (position > 0)
    parts = [
        rms_norm(part_H, part_H.shape, norm.weight, norm.eps)
        for part_H, norm in ((embedding_H, draft.enorm), (hidden_H, draft.hnorm))
    ]
    return draft.eh_proj.weight @ torch.cat(parts)


@torch.no_grad()
def test_a_block_answers_as_its_sequence_written_out(tiny_model: MakeModel) -> None:
    """At every t: context and block as the keys of one attention without a mask, layer by layer."""
    target = Target(tiny_model("Llama"), taps=(1, 0))
    draft = stirred(made("block", target))
    assert isinstance(draft, Block)
    text = random_text(target, 1, T)
    answers = text.answers(draft)
    for t in range(T - 1):
        context_SH = draft.hidden_norm(draft.fc(torch.cat([part[0, : t + 1] for part in text.features.tapped], -1)))
        chosen_H = target.embeddings.weight[text.tokens_BT[0, t + 1]].double()
        block_QH = torch.stack([chosen_H] + [draft.mask_H] * COUNT)
        for layer in draft.layers:
            assert isinstance(layer, DecoderLayer)
            block_QH = _attended(layer, context_SH, block_QH)
        wanted_QH = draft.norm(block_QH)
        for k in range(COUNT):
            torch.testing.assert_close(answers[k][0, t], wanted_QH[1 + k], rtol=0, atol=1e-9)


def _attended(layer: DecoderLayer, context_SH: torch.Tensor, block_QH: torch.Tensor) -> torch.Tensor:
    """A layer over one block behind its context, on torch's own attention."""
    attention, sizes = layer.self_attn, layer.self_attn.sizes
    normed_QH = layer.input_layernorm(block_QH)
    seen_KH = torch.cat((context_SH, normed_QH))
    cosines, sines = _turns(torch.arange(len(seen_KH)), sizes)

    def heads(flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(-1, (-1, sizes.head_dim)).transpose(0, 1)

    def turned(parts: torch.Tensor) -> torch.Tensor:
        first, second = parts.chunk(2, -1)
        count = parts.shape[1]
        return parts * cosines[:, -count:] + torch.cat((-second, first), -1) * sines[:, -count:]

    q = turned(attention.q_norm(heads(attention.q_proj(normed_QH))))
    k = turned(attention.k_norm(heads(attention.k_proj(seen_KH))))
    v = heads(attention.v_proj(seen_KH))
    gathered = scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=True)[0]
    middle_QH = block_QH + attention.o_proj(gathered.transpose(0, 1).flatten(1))
    out: torch.Tensor = middle_QH + layer.mlp(layer.post_attention_layernorm(middle_QH))
    return out


def test_sizes_are_the_targets(tiny_model: MakeModel) -> None:
    """Where a family calls them otherwise, too, or has none."""
    found = {
        family: Sizes.of(Target(tiny_model(family)).model.config.get_text_config())
        for family in ("Qwen3", "OPT", "Gemma3Text", "Bloom")
    }
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    common = {**sizes, "head_dim": 32}
    assert found["Qwen3"] == Sizes(**common)
    assert found["OPT"] == Sizes(**common, rms_norm_eps=1e-6)
    assert found["Gemma3Text"].rope_theta == 1e6
    assert found["Bloom"].rope_theta == 1e4
