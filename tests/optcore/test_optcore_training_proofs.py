"""The acceptance lines of training, each printing its figures: `python3 dev.py proofs-training`.

Held out: 64 windows of 128 tokens that no stage has seen. Budget of a run: 200 steps of 8 windows of 128 tokens, on the
shipped model. KL in nats a token to the model before quantization; a share recovered is of the quantized model's KL.
"""

import json
import pydoc_data.topics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fixtures.exporting import Quantize, run_of
from fixtures.training import prepared

from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.techniques import Qad, Qat
from optcore.training import objective
from optcore.training.answers import keep_answers
from optcore.training.divergences import TopK, forward_kl_top_k

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
BUDGET: dict[str, Any] = {
    "steps": 200,
    "batch": 8,
    "sequence_length": 128,
    "validation": {"samples": 32, "every": 50},
    "gradient_checkpointing": False,
    "skip_below": 0,
}


class Found(NamedTuple):
    """Of a checkpoint, on held-out text."""

    kl: float
    cross_entropy: float
    agreement: float

    def recovered(self, ptq: "Found") -> float:
        """Share of the quantized model's KL that is gone."""
        return 1 - self.kl / ptq.kl

    def line(self, name: str, ptq: "Found") -> str:
        said = f"KL {self.kl:.5f}  CE {self.cross_entropy:.4f}  top-1 {self.agreement:.2%}"
        return f"{name:<34} {said}  recovered {self.recovered(ptq):.1%}"


def _evaluated(text: Path | None) -> Calibration:
    """The standard library's sources, unless other text is named."""
    source = {"path": str(text)} if text else {"dataset": "python-stdlib"}
    return Calibration.model_validate({**source, "samples": 2, "sequence_length": 128})


def _measured(model: Path, checkpoint: Path, folder: Path, text: Path | None) -> Found:
    run = run_of(model, checkpoint, folder, calibration=_evaluated(text))
    run.data_files = (text,) if text else ()
    found, _ = compare(run, 64, 128)
    result = found["result"]
    return Found(result.mean_kl, result.negative_log_likelihood / result.tokens, result.agreement)


@pytest.fixture(scope="module")
def trained(quantized: Quantize, stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Found]:
    """`trained("nvfp4")` measures the quantized model; with a technique, what training it left.

    On the standard library's sources, or on a `text`.
    """

    @cache
    def _of(scheme: str, kind: str, text: Path | None, settings: tuple[tuple[str, Any], ...]) -> Found:
        torch.set_num_threads(1)
        folder = tmp_path_factory.mktemp(f"{scheme}-{kind}")
        checkpoint = quantized(scheme)
        if kind == "ptq":
            return _measured(stdlib_model, checkpoint, folder / "measured", text)
        chosen = {name: dict(value) if isinstance(value, frozenset) else value for name, value in settings}
        technique = {"qad": Qad, "qat": Qat}[kind.removesuffix("*")].model_validate({**BUDGET, **chosen})
        run = run_of(stdlib_model, checkpoint, folder / "out")
        run.teacher = stdlib_model
        prepared(run, technique, folder / "windows", (text,) if text else (), _evaluated(text))
        if top_k := getattr(technique, "teacher_top_k", None):
            asking = run_of(stdlib_model, stdlib_model, folder / "answers")
            asking.teacher, asking.windows = stdlib_model, run.windows
            keep_answers(asking, top_k, 1.0)
            run.answers = folder / "answers"
        technique.apply(run)
        return _measured(stdlib_model, folder / "out", folder / "measured", text)

    return lambda scheme, kind="ptq", text=None, **settings: _of(scheme, kind, text, tuple(sorted(settings.items())))


def test_a1_qad_wins_back_nvfp4_weights(trained: Callable[..., Found]) -> None:
    ptq, qad = trained("nvfp4_w4a16"), trained("nvfp4_w4a16", "qad", learning_rate=1e-4)
    print("\n".join((ptq.line("NVFP4 W4A16, PTQ", ptq), qad.line("QAD, lr 1e-4", ptq))))
    assert qad.recovered(ptq) >= 0.5
    assert qad.agreement > ptq.agreement


def test_a2_qad_with_rounded_activations(trained: Callable[..., Found]) -> None:
    ptq = trained("nvfp4")
    runs = {f"QAD, lr {rate:g}": trained("nvfp4", "qad", learning_rate=rate) for rate in (3e-5, 1e-4, 3e-4)}
    lines = [ptq.line("NVFP4 W4A4, PTQ", ptq), *(one.line(name, ptq) for name, one in runs.items())]
    print("\n".join(lines))
    assert runs["QAD, lr 0.0001"].recovered(ptq) >= 0.15
    assert all(one.kl <= ptq.kl for one in runs.values())


def test_a3_qad_stays_with_the_model_and_qat_goes_to_the_text(trained: Callable[..., Found], manual: Path) -> None:
    """On text that the model never saw: on its own training text QAD was better by cross-entropy, too."""
    ptq = trained("nvfp4", text=manual)
    qat, qad = (trained("nvfp4", kind, learning_rate=1e-4, text=manual) for kind in ("qat", "qad"))
    print("\n".join((ptq.line("NVFP4 W4A4, PTQ", ptq), qat.line("QAT, lr 1e-4", ptq), qad.line("QAD, lr 1e-4", ptq))))
    assert qad.kl < qat.kl
    assert qat.cross_entropy <= qad.cross_entropy


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python manual's prose, a topic a line; the shipped model was trained on sources only."""
    path = tmp_path_factory.mktemp("manual") / "topics.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in pydoc_data.topics.topics.values()))
    return path


@pytest.mark.parametrize(("scheme", "least", "ratio"), [("int3_g32", 0.5, 1.5), ("int2_g32", 0.7, 1.0)])
def test_a4_a5_few_bits(trained: Callable[..., Found], scheme: str, least: float, ratio: float) -> None:
    ptq = trained(scheme)
    qat, qad = (trained(scheme, kind, learning_rate=3e-4) for kind in ("qat", "qad"))
    lines = (ptq.line(f"{scheme}, PTQ", ptq), qat.line("QAT, lr 3e-4", ptq), qad.line("QAD, lr 3e-4", ptq))
    print("\n".join(lines))
    assert qad.recovered(ptq) >= least
    assert qad.recovered(ptq) >= ratio * qat.recovered(ptq)


def test_a6_four_likeliest_tokens_and_the_rest(trained: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    ptq, full = trained("int2_g32"), trained("int2_g32", "qad", learning_rate=3e-4)
    rest = trained("int2_g32", "qad", learning_rate=3e-4, teacher_top_k=4)

    def renormalized(logits_NV: torch.Tensor, top_k: TopK) -> torch.Tensor:
        """What naive caches do: the kept tokens are all that there is."""
        kept = top_k.probabilities.float()
        p = kept / kept.sum(-1, keepdim=True)
        log_q = torch.log_softmax(logits_NV.float(), -1).gather(-1, top_k.ids)
        return (p * (p.log() - log_q)).sum(-1)

    monkeypatch.setattr(objective.divergences, "forward_kl_top_k", renormalized)
    naive = trained("int2_g32", "qad*", learning_rate=3e-4, teacher_top_k=4)
    print("\n".join(one.line(name, ptq) for name, one in (("full", full), ("rest", rest), ("renormalized", naive))))
    assert rest.kl <= 1.5 * full.kl
    assert naive.kl > rest.kl
    assert forward_kl_top_k is not renormalized


def test_a7_more_steps(trained: Callable[..., Found]) -> None:
    """What four times the budget adds."""
    for scheme in ("nvfp4", "nvfp4_w4a16"):
        ptq = trained(scheme)
        print(trained(scheme, "qad", learning_rate=1e-4, steps=800).line(f"{scheme}, QAD, 800 steps", ptq))
        assert trained(scheme, "qad", learning_rate=1e-4, steps=800).kl < ptq.kl


@pytest.mark.parametrize("data", ["random", "generated"])
def test_without_text(trained: Callable[..., Found], data: str) -> None:
    """Random tokens do no harm; what the model writes itself serves as text does."""
    ptq = trained("int3_g32")
    found = trained("int3_g32", "qad", learning_rate=1e-4, data=frozenset({("kind", data)}))
    print(found.line(f"int3_g32, QAD on {data} tokens", ptq))
    assert found.kl <= ptq.kl
