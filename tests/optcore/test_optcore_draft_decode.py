"""Decoding with drafts writes what the target alone writes, and that is what transformers writes.

Shapes: B rows, T tokens, K drafted ones.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import Quantize
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from optcore.drafts.small_model import SmallModel
from optcore.errors import RecipeError
from optcore.speculative.decode import Decoded, generate
from optcore.speculative.drafter import Drafter, Proposal
from optcore.speculative.ngram import NgramDrafter
from optcore.speculative.sampling import GREEDY, Sampling, probabilities
from optcore.speculative.stopping import NEVER, Stop, ends_of
from optcore.speculative.target import Features, Target

NEW, END = 20, Stop(frozenset({0}))
PROMPTS = [list(range(5, 26)), [7, 9, 7, 9, 7], [1500], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]]


class Prompter:
    """Knows the texts that will be written, and is wrong now and then: in a chain, or in a tree of two tokens below the
    first one of the two before, where the second may be right. Keeps what it is given to read."""

    def __init__(self, texts: Sequence[Sequence[int]], taps: tuple[int, ...], *, tree: bool) -> None:
        self.taps, self._tree = taps, tree
        self._texts, self._random = texts, torch.Generator().manual_seed(1)
        self.tokens: list[list[int]] = [[] for _ in texts]
        self.seen: list[list[torch.Tensor]] = [[] for _ in texts]

    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        states_BTH = torch.cat((features.hidden_BTH, *features.tapped), -1)
        for row, valid_T in enumerate(valid_BT):
            self.tokens[row] += tokens_BT[row, valid_T].tolist()
            self.seen[row] += list(states_BTH[row, valid_T])

    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        right = [
            [*text[len(read) + 1 :], *[0] * count][:count] for text, read in zip(self._texts, self.tokens, strict=True)
        ]
        right_BK = torch.tensor(right)
        wrong_BK = (right_BK + 1) % 2048
        is_wrong_BK = torch.rand(right_BK.shape, generator=self._random) < 0.3
        valid_BK = torch.rand(len(right), 1, generator=self._random).expand(-1, count) < 0.8
        if not self._tree:
            return Proposal(torch.where(is_wrong_BK, wrong_BK, right_BK), valid_BK=valid_BK)
        left_BK, other_BK = (torch.where(one, right_BK, wrong_BK) for one in (~is_wrong_BK, is_wrong_BK))
        parents, tokens = [], []
        for depth in range(count):
            parents += [2 * depth - 2, 2 * depth - 2] if depth else [-1, -1]
            tokens += [left_BK[:, depth], other_BK[:, depth]]
        return Proposal(torch.stack(tokens, 1), None, tuple(parents), valid_BK.repeat(1, 2))


def _greedy(
    target: Target, drafter: Callable[[int], Drafter] | None = None, stop: Stop = END, new_tokens: int = NEW
) -> Decoded:
    return generate(target, PROMPTS, new_tokens=new_tokens, sampling=GREEDY, drafter=drafter, count=4, stop=stop)


def _by_transformers(folder: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=0, pad_token_id=0)
    texts = []
    for prompt in PROMPTS:
        tokens_BT = torch.tensor([prompt])
        found = model.generate(tokens_BT, attention_mask=torch.ones_like(tokens_BT), generation_config=config)
        texts.append(found[0, len(prompt) :].tolist())
    return texts


@pytest.mark.parametrize(
    "family",
    ["Llama", "Mistral", "Gemma2", "Gemma3Text", "GptOss", "Mixtral", "DeepseekV3", "OPT"],
)
def test_greedy_texts_are_those_of_transformers(tiny_model: MakeModel, family: str) -> None:
    folder = tiny_model(family)
    target = Target(folder, taps=(1, 0))
    plain = _greedy(target)
    assert plain.tokens == _by_transformers(folder)
    assert plain.passes == max(map(len, plain.tokens))
    texts = [prompt + text for prompt, text in zip(PROMPTS, plain.tokens, strict=True)]
    assert _greedy(target, NgramDrafter).tokens == plain.tokens
    for tree in (False, True):
        prompter = Prompter(texts, target.taps, tree=tree)
        found = _greedy(target, lambda rows, one=prompter: one)
        assert found.tokens == plain.tokens
        assert found.passes < plain.passes
        _adds_up(found)
        _was_read(prompter, texts, target)


def _adds_up(found: Decoded) -> None:
    """Each round brings its accepted tokens and one of the target's, unless the text ended within the former."""
    for text, accepted in zip(found.tokens, found.accepted, strict=True):
        assert len(text) - 1 - sum(accepted) in (len(accepted), len(accepted) - 1)
        assert found.passes > len(accepted)


def _was_read(prompter: Prompter, texts: Sequence[Sequence[int]], target: Target) -> None:
    """All tokens but the last, with what a plain pass computes at each."""
    for text, tokens, seen in zip(texts, prompter.tokens, prompter.seen, strict=True):
        common = min(len(text) - 1, len(tokens))  # the last round may go beyond the end of a text
        assert common == len(text) - 1
        assert tokens[:common] == text[:common]
        wanted = target.look({"input_ids": torch.tensor([text])})
        wanted_TH = torch.cat((wanted.hidden_BTH, *wanted.tapped), -1)[0, :common]
        torch.testing.assert_close(torch.stack(seen[:common]), wanted_TH, rtol=1e-4, atol=1e-4)


def test_a_quantized_target(quantized: Quantize) -> None:
    """W4A4 and an FP8 cache, in float64: see `test_quantized_targets` of the session."""
    target = Target(quantized("nvfp4", kv_cache="fp8"), dtype=torch.float64)
    plain = _greedy(target, new_tokens=10)
    texts = [prompt + text for prompt, text in zip(PROMPTS, plain.tokens, strict=True)]
    found = _greedy(target, lambda rows: Prompter(texts, (), tree=True), new_tokens=10)
    assert found.tokens == plain.tokens == _greedy(target, NgramDrafter, new_tokens=10).tokens
    assert found.passes < plain.passes


@pytest.mark.parametrize("new_tokens", [1, 2, 3, 7])
def test_nothing_is_written_beyond_the_length(stdlib_model: Path, new_tokens: int) -> None:
    target = Target(stdlib_model)
    plain = _greedy(target, stop=NEVER, new_tokens=new_tokens)
    found = _greedy(target, NgramDrafter, NEVER, new_tokens)
    assert [len(text) for text in plain.tokens] == [new_tokens] * len(PROMPTS)
    assert found.tokens == plain.tokens
    _adds_up(found)


def test_texts_end_where_plain_decoding_ends_them(stdlib_model: Path) -> None:
    """Ends of each kind, taken from the middle of what is written without any: rows end at different rounds."""
    target, tokenizer = Target(stdlib_model), AutoTokenizer.from_pretrained(stdlib_model)
    free = _greedy(target, stop=NEVER, new_tokens=24).tokens
    said = [tokenizer.decode(text) for text in free]
    texts = [prompt + text for prompt, text in zip(PROMPTS, free, strict=True)]
    stops = [
        Stop(frozenset(text[7] for text in free)),
        Stop(strings=(said[0][9:16], said[1][20:24]), tokenizer=tokenizer),
        Stop(frozenset({free[2][11]}), (said[3][14:23],), tokenizer),
    ]
    for stop in stops:
        plain = _greedy(target, stop=stop, new_tokens=24)
        ends = [_end(text, stop) for text in free]
        assert [len(text) for text in plain.tokens] == ends
        assert min(ends) < 24
        for tree in (False, True):
            found = _greedy(target, lambda rows, tree=tree: Prompter(texts, (), tree=tree), stop, 24)
            assert found.tokens == plain.tokens == [text[:end] for text, end in zip(free, ends, strict=True)]
            _adds_up(found)


def _end(text: Sequence[int], stop: Stop) -> int:
    """Token by token, all of the text decoded anew for each."""
    for length in range(1, len(text) + 1):
        said = stop.tokenizer.decode(text[:length]) if stop.strings else ""
        if text[length - 1] in stop.eos or any(string in said for string in stop.strings):
            return length
    return len(text)


def test_a_text_ends_with_all_that_checkpoint_and_tokenizer_say(stdlib_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stdlib_model)
    assert ends_of(tmp_path, tokenizer) == {0}
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": 7}}')
    assert ends_of(tmp_path, tokenizer) == {0, 7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert ends_of(tmp_path, tokenizer) == {0, 7, 9}
    (tmp_path / "config.json").write_text('{"eos_token_id": 8, "text_config": null}')
    assert ends_of(tmp_path, tokenizer) == {0, 7, 8, 9}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    tokenizer.eos_token = None
    assert ends_of(tmp_path, tokenizer) == {8}


def test_a_string_may_span_tokens_and_split_characters(stdlib_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stdlib_model)
    tokens = tokenizer.encode("def f():\n    return 'über', \U0001f600\n\nclass A:")
    for string in ("ret", "n 'ü", "\U0001f600", "r', \U0001f600\n", ":\n", "A:"):
        stop = Stop(strings=(string,), tokenizer=tokenizer)
        assert stop.length(tokens) == _end(tokens, stop)
        assert string in tokenizer.decode(tokens[: stop.length(tokens)])
    assert Stop(strings=("xyz",), tokenizer=tokenizer).length(tokens) is None
    assert Stop(frozenset({tokens[0]})).length(tokens) == 1
    assert Stop(frozenset({tokens[0]})).length(tokens[:4], known=1) is None
    with pytest.raises(AssertionError, match="tokenizer"):
        Stop(strings=("x",))


SAMPLING, DRAWS = Sampling(temperature=0.9, top_k=3), 1500


@pytest.fixture(scope="module")
def blurred(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says nearly what Llama's tiny one says."""
    folder, source = tmp_path_factory.mktemp("blurred") / "model", tiny_model("Llama")
    shutil.copytree(source, folder)
    path, random = folder / "model.safetensors", torch.Generator().manual_seed(2)
    weights = load_file(source / path.name)
    path.unlink()
    noisy: dict[str, Any] = {
        name: weight + 0.004 * torch.randn(weight.shape, generator=random).to(weight.dtype)
        for name, weight in weights.items()
    }
    save_file(noisy, path, metadata={"format": "pt"})
    return folder


def _joint(target: Target, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of each three tokens that can follow, one pass for each beginning."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for begun, mass in found.items():
            hidden_BTH = target.look({"input_ids": torch.tensor([[*prompt, *begun]])}).hidden_BTH
            p_V = probabilities(target.logits(hidden_BTH[0, -1:]), SAMPLING)[0]
            longer |= {(*begun, token): mass * float(p_V[token]) for token in p_V.nonzero()[:, 0].tolist()}
        found = longer
    return found


@pytest.mark.parametrize("kind", ["plain", "ngram", "model"])
def test_drawn_texts_are_distributed_as_the_targets(tiny_model: MakeModel, blurred: Path, kind: str) -> None:
    """Three tokens, 27 texts, chi-square; n-grams know a likely way to go on."""
    target = Target(tiny_model("Llama"))
    (likeliest,) = generate(target, [[4]], new_tokens=3, sampling=GREEDY).tokens
    prompt = [4, *likeliest, 4]
    wanted = _joint(target, prompt)
    small = SmallModel(blurred, target.vocabulary)
    drafters: dict[str, Callable[[int], Drafter] | None] = {
        "plain": None,
        "ngram": NgramDrafter,
        "model": small.drafter,
    }
    decoded = generate(
        target, [prompt] * DRAWS, new_tokens=3, sampling=SAMPLING, drafter=drafters[kind], count=2, seed=5
    )
    texts = [tuple(text) for text in decoded.tokens]
    assert set(texts) <= set(wanted)
    assert len(wanted) == 27
    chi_square = sum((texts.count(one) - DRAWS * mass) ** 2 / (DRAWS * mass) for one, mass in wanted.items())
    assert chi_square < 62.0  # 26 degrees of freedom; chance passes it once in ten thousand times
    accepted = sum(map(sum, decoded.accepted))
    assert (accepted > 0) == (kind != "plain")
    assert kind == "plain" or accepted < DRAWS


def test_a_small_model_answers_about_the_text_and_forgets_its_own(tiny_model: MakeModel) -> None:
    model = tiny_model("Llama")
    draft, target = SmallModel(model, 2048), Target(model)
    tokens_BT = torch.randint(1, 2048, (2, 12), generator=torch.Generator().manual_seed(3))
    positions_BT = torch.arange(12).expand(2, -1)
    features = target.look({"input_ids": tokens_BT})
    logits_BTV = target.logits(features.hidden_BTH)
    for k, hidden_BTH in enumerate(draft.answers(tokens_BT, positions_BT, features, 13)):
        said_BTV = draft.logits(hidden_BTH, k)
        assert said_BTV.shape == logits_BTV.shape
        assert torch.equal(said_BTV[:, : max(12 - k - 1, 0)], logits_BTV[:, k + 1 :])
    drafter = draft.drafter(2)
    drafter.read(tokens_BT, torch.arange(12) < torch.tensor([[12], [9]]), features)
    chosen_B = torch.tensor([17, 18])
    first = drafter.propose(chosen_B, 3, GREEDY, None)
    assert torch.equal(drafter.propose(chosen_B, 3, GREEDY, None).tokens_BK, first.tokens_BK)
    texts = [[*tokens_BT[0].tolist(), 17], [*tokens_BT[1, :9].tolist(), 18]]
    plain = generate(target, texts, new_tokens=3, sampling=GREEDY)
    assert first.tokens_BK.tolist() == plain.tokens
    found = generate(target, texts, new_tokens=12, sampling=GREEDY, drafter=draft.drafter, count=5)
    assert found.accepted == [[5, 4], [5, 4]]  # it is the target: 1 + (5 + 1) + (4 + 1)


def test_a_small_model_of_another_vocabulary(stdlib_model: Path) -> None:
    with pytest.raises(RecipeError, match="2,048 tokens, the target 2,049"):
        SmallModel(stdlib_model, 2049)
