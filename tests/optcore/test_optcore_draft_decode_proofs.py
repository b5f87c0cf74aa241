"""Real drafting loops over the shipped model, each printing its figures. Prompts: the library's held-out files.

tau is tokens a pass of the target: the accepted ones of a round and its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from fixtures.exporting import Quantize, run_of

from optcore.calibration.text import Texts
from optcore.drafts.small_model import SmallModel
from optcore.references import Calibration
from optcore.speculative.decode import Decoded, generate
from optcore.speculative.drafter import Drafter
from optcore.speculative.ngram import NgramDrafter
from optcore.speculative.sampling import GREEDY, Sampling
from optcore.speculative.target import Target
from optcore.techniques import Prune

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
TEXT = Calibration(dataset="python-stdlib", samples=6, sequence_length=64)
PROMPTS, COUNT, NEW = 12, 5, 128


@pytest.fixture(scope="module")
def prompts(stdlib_model: Path) -> list[list[int]]:
    """Of lengths from 21 to 32."""
    windows_NT = Texts(stdlib_model, TEXT, ()).evaluation_windows(PROMPTS, 32, 1024)
    return [window[: 32 - row % 12] for row, window in enumerate(windows_NT.tolist())]


@pytest.fixture(scope="module")
def small(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    """Three of the six layers, not trained since."""
    run = run_of(stdlib_model, stdlib_model, tmp_path_factory.mktemp("small") / "out", calibration=TEXT)
    Prune(depth=3).apply(run)
    return SmallModel(run.out, 2048)


def _taus(found: Decoded) -> list[float]:
    return [1 + sum(accepted) / len(accepted) for accepted in found.accepted]


def _line(name: str, found: Decoded) -> str:
    rounds, accepted = (sum(map(of, found.accepted)) for of in (len, sum))
    each = " ".join(f"{tau:.2f}" for tau in _taus(found))
    return f"{name:<28} tau {1 + accepted / rounds:.3f}  {rounds} rounds, {accepted} accepted; by prompt: {each}"


def test_d3_greedy_text_is_the_same_and_the_walk_is_the_loop(
    stdlib_model: Path, prompts: list[list[int]], small: SmallModel
) -> None:
    """In a batch, row by row, and as one teacher-forced pass over the plain text predicts the loop."""
    target = Target(stdlib_model)
    plain = generate(target, prompts, new_tokens=NEW, sampling=GREEDY)
    drafters: dict[str, Callable[[int], Drafter]] = {"n-grams": NgramDrafter, "3 of 6 layers": small.drafter}
    for name, drafter in drafters.items():
        found = generate(target, prompts, new_tokens=NEW, sampling=GREEDY, drafter=drafter, count=COUNT)
        print(_line(f"greedy, {name}", found))
        assert found.tokens == plain.tokens
        alone = [
            generate(target, [prompt], new_tokens=NEW, sampling=GREEDY, drafter=drafter, count=COUNT)
            for prompt in prompts
        ]
        assert [one.tokens[0] for one in alone] == plain.tokens
        assert [one.accepted[0] for one in alone] == found.accepted
        assert [one.passes for one in alone] == [1 + len(one.accepted[0]) for one in alone]
    walks = [_walk(small, target, prompt, text) for prompt, text in zip(prompts, plain.tokens, strict=True)]
    print(f"{sum(map(len, walks))} rounds walked over one teacher-forced pass a prompt")
    assert walks == found.accepted


def _walk(small: SmallModel, target: Target, prompt: Sequence[int], text: Sequence[int]) -> list[int]:
    """What the loop accepts: at position t the k-th answer is right where the text has it as token t + 2 + k."""
    tokens_BT = torch.tensor([[*prompt, *text]])
    features = target.look({"input_ids": tokens_BT})
    answers = small.answers(tokens_BT, torch.arange(tokens_BT.shape[1])[None], features, COUNT)
    said = [small.logits(hidden_BTH, k)[0].argmax(-1).tolist() for k, hidden_BTH in enumerate(answers)]
    found, written = [], 1
    while written < len(text):
        place = len(prompt) + written - 1  # the chosen token's; the draft stands one before it
        most = min(COUNT, len(text) - written - 1)
        right = [said[k][place - 1] == tokens_BT[0, place + 1 + k].item() for k in range(most)]
        found.append(right.index(False) if False in right else most)
        written += found[-1] + 1
    return found


def test_a_quantized_target_writes_its_own_text(
    quantized: Quantize, prompts: list[list[int]], small: SmallModel
) -> None:
    """NVFP4 weights and inputs and an FP8 cache; float64, so that no sum's last bit falls across a rounding."""
    target = Target(quantized("nvfp4", kv_cache="fp8"), dtype=torch.float64)
    plain = generate(target, prompts[:4], new_tokens=64, sampling=GREEDY)
    for name, drafter in (("n-grams", NgramDrafter), ("3 of 6 layers", small.drafter)):
        found = generate(target, prompts[:4], new_tokens=64, sampling=GREEDY, drafter=drafter, count=COUNT)
        print(_line(f"NVFP4 greedy, {name}", found))
        assert found.tokens == plain.tokens


def test_drawn_text_accepts_less_of_n_grams(stdlib_model: Path, prompts: list[list[int]], small: SmallModel) -> None:
    target = Target(stdlib_model)
    taus = []
    for name, drafter in (("n-grams", NgramDrafter), ("3 of 6 layers", small.drafter)):
        found = generate(
            target, prompts, new_tokens=NEW, sampling=Sampling(temperature=1.0), drafter=drafter, count=COUNT, seed=1
        )
        print(_line(f"T = 1, {name}", found))
        taus.append(sum(_taus(found)) / PROMPTS)
    assert taus[1] > taus[0]
