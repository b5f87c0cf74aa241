"""The whole job on the shipped model, by the recipe that ships for it: quantized to NVFP4, drafted for, exported,
measured. What the report says is measured again here, printing its figures (docs/speculative.md)."""

import contextlib
import json
from functools import cached_property
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from optcore.calibration.text import Texts
from optcore.drafts.folder import read_draft, read_parts
from optcore.engine import optimize
from optcore.evaluate import Acceptance
from optcore.events import AnyEvent, StageFinished
from optcore.export.compressed_tensors_decoder import CompressedDecoder
from optcore.recipe import Recipe, load_recipe
from optcore.report import Measurement, Report
from optcore.speculative.acceptance import AcceptanceFacts, AcceptedAt, measure_acceptance
from optcore.speculative.cost import real_tau
from optcore.speculative.decode import Decoded, generate
from optcore.speculative.ngram import NgramDrafter
from optcore.speculative.own_text import OwnText
from optcore.speculative.sampling import GREEDY, Sampling
from optcore.speculative.stopping import Stop, ends_of
from optcore.speculative.target import Target
from optcore.speculative.teacher_forced import teacher_forced
from optcore.stage import StageTask
from optcore.streaming.simulate import module_paths
from optcore.training.windows import LEARNED, Windows
from optcore.work import WorkFolder

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "docs" / "recipes" / "speculative-demo.yaml"
EXACT_prompts = 6
"""Decoded in float64."""
WINDOWS = 128
"""Of those that the draft learned from, the first ones."""


class Job:
    """A finished run: its artifact, and what its stages left."""

    def __init__(self, recipe: Recipe, out: Path, work: Path) -> None:
        self.recipe, self.out, self._work, self._keys = recipe, out, WorkFolder(work), dict[str, str]()
        optimize(recipe, out, work, self._heard)

    def _heard(self, event: AnyEvent) -> None:
        if isinstance(event, StageFinished):
            self._keys[event.stage] = event.key
            print(f"{event.stage}: {event.seconds:.0f} s")

    def left_by(self, stage: str) -> Path:
        """The files of a stage."""
        return self._work.files(self._keys[stage])

    def told(self, stage: str) -> StageTask:
        """What the process of a stage was told."""
        return StageTask.model_validate_json((self.left_by(stage).parent / "task.json").read_text())

    @cached_property
    def report(self) -> Report:
        return Report.model_validate_json((self.out / "report.json").read_text())

    @cached_property
    def rows(self) -> dict[str, Measurement]:
        return {row.name: row for row in self.report.measurements}

    def value(self, name: str) -> float:
        found = self.rows[name].result
        assert found is not None
        return found

    @cached_property
    def facts(self) -> AcceptanceFacts:
        """What the evaluating stage measured, before it became rows."""
        record = self._work.record(self._keys["4-evaluate"])
        assert record
        return AcceptanceFacts.model_validate(record.results["acceptance"])

    @cached_property
    def asked(self) -> Acceptance:
        return next(one for one in self.recipe.evaluate if isinstance(one, Acceptance))

    @cached_property
    def texts(self) -> Texts:
        return Texts(self.source, self.recipe.calibration, ())

    @cached_property
    def prompts(self) -> torch.Tensor:
        return self.texts.evaluation_windows(self.asked.prompts, self.asked.prompt_tokens, 1024)

    @property
    def source(self) -> Path:
        return ROOT / str(self.recipe.model.path)

    def ends(self, folder: Path) -> frozenset[int]:
        """What ends a text of a model."""
        return ends_of(folder, self.texts.tokenizer)

    def target(self, folder: Path, dtype: torch.dtype | None = None) -> Target:
        """A model that keeps what the draft reads."""
        return Target(folder, read_parts(self.out / "draft", 6).taps, dtype=dtype)

    def measured_on(self, folder: Path) -> AcceptanceFacts:
        """Acceptance as the recipe asks for it, measured in this process with the draft in the artifact."""
        target = self.target(folder)
        return measure_acceptance(
            target,
            read_draft(self.out / "draft", target).eval(),
            NgramDrafter,
            self.prompts,
            count=self.asked.tokens,
            new_tokens=self.asked.new_tokens,
            sampled=Sampling(temperature=self.asked.temperature),
            ends=self.ends(folder),
            seed=self.recipe.seed,
        )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line2")
    with contextlib.chdir(ROOT):  # the recipe names the model by its place in the repository
        return Job(load_recipe(RECIPE), folder / "out", folder / "work")


def line(name: str, at: AcceptedAt) -> str:
    """A draft and n-grams on the same texts."""
    said = [f"{name}, T={at.sampling.temperature:g}: {at.prompts} prompts, {at.tokens} tokens, {at.looping:.0%} loop"]
    for who, found in (("draft", at.own), ("n-grams", at.ngram)):
        shares = " ".join(f"{share:.3f}" for share in found.survival)
        interval = f"[{found.interval.low:.2f}, {found.interval.high:.2f}]"
        said.append(f"  {who:<8} tau {found.tau:.3f} {interval}, at least 1, 2, ...: {shares}")
    return "\n".join(said)


def test_the_draft_guesses_better_than_n_grams(job: Job) -> None:
    """With intervals in the report; greedily n-grams live on circles, so the claim is about sampled text."""
    print()
    for key, at in (("greedy", job.facts.greedy), ("sampled", job.facts.sampled)):
        print(line("reported", at))
        low, high = at.own.interval.low, at.own.interval.high
        assert low <= job.value(f"acceptance_length_{key}") == at.own.tau <= high
        assert job.value(f"ngram_length_{key}") == at.ngram.tau
        assert f"interval {low:.2f} to {high:.2f} over 24 prompts" in job.rows[f"acceptance_length_{key}"].note
    sampled = job.facts.sampled
    assert sampled.own.tau > 1.5 * sampled.ngram.tau
    assert sampled.own.interval.low > sampled.ngram.interval.high


def test_predicted_and_measured_speedups_stand_side_by_side(job: Job) -> None:
    """Timing is printed and not judged: what a draft buys on a CPU, where a verification is not the price of a pass,
    may well be nothing."""
    print(f"\ncovered by the draft's vocabulary: {job.facts.covered:.4f}; KL to the source: {job.value('mean_kl'):.4f}")
    print("batch  T  predicted  ideal  measured  measured/predicted  proposal, verification in passes")
    for cost, key in product(job.facts.costs, ("greedy", "sampled")):
        at = getattr(job.facts, key)
        predicted = job.value(f"predicted_speedup_{key}_{cost.batch}")
        measured = job.value(f"draft_speedup_{key}_{cost.batch}")
        assert predicted == cost.predicted(at.own.tau) > 0
        assert measured > 0
        assert job.value(f"draft_cost_{cost.batch}") == cost.ratio > 0
        print(
            f"{cost.batch:>5}  {at.sampling.temperature:g}  {predicted:>9.2f}  {cost.ideal(at.own.tau):>5.2f}  "
            f"{measured:>8.2f}  {measured / predicted:>18.2f}  {cost.ratio:.2f}, {cost.verification / cost.target:.2f}"
        )


def test_it_was_measured_against_the_quantized_model(job: Job) -> None:
    """The model that the artifact's bytes decode to, measured anew, gives the report's figures; the source others."""
    quantized = job.left_by("1-ptq")
    assert {job.told(stage).inputs.checkpoint for stage in ("2-draft", "4-evaluate")} == {str(quantized)}
    target, artifact = job.target(quantized), CompressedDecoder(job.out)
    weights = {
        name: layer.get_submodule(path).weight
        for index, layer in enumerate(target.decoder.layers)
        for path, name in module_paths(target.decoder, index, layer).items()
    }
    print(f"\n{len(weights)} layers in the artifact's bytes")
    assert len(weights) == 42
    assert all(torch.equal(weight, artifact.weight(name)) for name, weight in weights.items())
    again, source = job.measured_on(quantized), job.measured_on(job.source)
    for name, facts in (("quantized", again), ("source", source)):
        print(line(name, facts.greedy), line(name, facts.sampled), sep="\n")
    assert (again.greedy, again.sampled, again.covered) == (job.facts.greedy, job.facts.sampled, job.facts.covered)
    for ours, theirs in ((again.greedy, source.greedy), (again.sampled, source.sampled)):
        assert ours.own != theirs.own


@torch.no_grad()
def test_the_quantized_model_wrote_what_the_draft_learned(job: Job) -> None:
    """The log-likelihood ratio of the windows: a token that q wrote is likelier under q than under p by KL(q || p) in
    the mean, and by -KL(p || q) if p wrote it."""
    quantized = job.left_by("1-ptq")
    assert job.told("2-draft-data").inputs.teacher == str(quantized)
    batch = Windows(job.left_by("2-draft-data")).read(range(WINDOWS))
    begin = int(((batch.flags_BT[0] & LEARNED) == 0).sum()) + 32  # behind the frame and the prompt
    targets = Target(quantized), Target(job.source)
    ratios, divergences = [], []
    for part_BT in batch.tokens_BT.split(16):
        q_BNV, p_BNV = (
            target.logits(target.look({"input_ids": part_BT}).hidden_BTH[:, begin - 1 : -1]).double().log_softmax(-1)
            for target in targets
        )
        ratios.append((q_BNV - p_BNV).gather(-1, part_BT[:, begin:, None]).flatten())
        divergences.append((q_BNV.exp() * (q_BNV - p_BNV)).sum(-1).flatten())
    ratio_N, divergence = torch.cat(ratios), torch.cat(divergences).mean()
    error = ratio_N.std() / len(ratio_N) ** 0.5
    print(
        f"\n{len(ratio_N)} written tokens: log q/p {ratio_N.mean():.4f} (s.e. {error:.4f}) nats each, "
        f"KL(q || p) {divergence:.4f}; q is quantized, p the source"
    )
    assert ratio_N.mean() > 5 * error
    assert abs(ratio_N.mean() - divergence) < 4 * error


class Plots(HTMLParser):
    """The titles of a page's drawings that readers of screens are told, and how many lines are in each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.titles: dict[str, str] = {}
        self.drawn: dict[str, int] = {}
        self._plot = self._title = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "svg" and said.get("role") == "img":
            self._plot = said["aria-labelledby"] or ""
        elif tag == "title" and self._plot and said.get("id") == self._plot:
            self._title = self._plot
        elif tag in ("path", "polyline") and self._plot:
            self.drawn[self._plot] = self.drawn.get(self._plot, 0) + 1
        assert tag not in ("img", "script", "link"), "a report is one file"

    def handle_endtag(self, tag: str) -> None:
        self._title = "" if tag == "title" else self._title
        self._plot = "" if tag == "svg" else self._plot

    def handle_data(self, data: str) -> None:
        if self._title:
            self.titles[self._title] = self.titles.get(self._title, "") + data


def test_the_page_plots_survival_and_training(job: Job) -> None:
    plots = Plots((job.out / "report.html").read_text())
    drawn = {one.name: one for one in job.report.series}
    survival = {f"{who}-survival-{how}" for who in ("draft", "n-grams") for how in ("greedy", "sampled")}
    training = {f"2-draft-{what}" for what in ("loss", "refused")}
    assert survival | training <= drawn.keys()
    print()
    for name in sorted(survival | training):
        found = [key for key, title in plots.titles.items() if title.startswith(f"{drawn[name].title}, from ")]
        assert len(found) == 1, name
        assert plots.drawn[found[0]] >= 1
        print(f"{name}: {len(drawn[name].points)} points, {plots.titles[found[0]]}")
    assert [share for _, share in drawn["draft-survival-sampled"].points] == list(job.facts.sampled.own.survival)
    refused = [value for _, value in drawn["2-draft-refused"].points]
    assert refused[-1] < refused[0]


def test_the_card_tells_engines_of_the_draft(job: Job) -> None:
    card = (job.out / "README.md").read_text()
    assert "`draft/` holds a speculative draft (`eagle3`)" in card
    told = {notes.engine.split()[0].strip(",").lower(): notes.settings for notes in job.report.deployment}
    print()
    for engine, first in (("vllm", "--spec"), ("sglang", "--spec"), ("tensorrt-llm", "speculative_config")):
        settings = {one.name: one.value for one in told[engine] if one.name.startswith(first)}
        assert settings
        assert "draft" in json.dumps(settings)
        print(f"{engine}: {settings}")
        assert all(f"`{name}` | `{value}`" in card for name, value in settings.items())


def test_the_artifacts_draft_changes_no_text(job: Job) -> None:
    """In float64 every text and every round of a real loop is what plain decoding and the walk say; in float32 inputs
    that are rounded to four bits now and then fall on the other side, and the figure stays."""
    quantized, ends = job.left_by("1-ptq"), job.ends(job.left_by("1-ptq"))

    def decoded(target: Target, prompts_SP: torch.Tensor, **more: Any) -> Decoded:
        new, stop = job.asked.new_tokens, Stop(ends)
        return generate(target, prompts_SP.tolist(), new_tokens=new, sampling=GREEDY, stop=stop, **more)

    print()
    for dtype, prompts_SP in ((torch.float64, job.prompts[:EXACT_prompts]), (torch.float32, job.prompts)):
        target = job.target(quantized, dtype)
        draft = read_draft(job.out / "draft", target).to(dtype).eval()
        plain = decoded(target, prompts_SP)
        found = decoded(target, prompts_SP, drafter=draft.drafter, count=job.asked.tokens)
        same = sum(one == other for one, other in zip(found.tokens, plain.tokens, strict=True))
        print(f"{dtype}: {same} of {len(prompts_SP)} texts the same; tau of the loop {real_tau(found):.3f}")
        if dtype == torch.float64:
            assert found.tokens == plain.tokens
            text = _text(prompts_SP, plain, job.asked.new_tokens)
            assert teacher_forced(target, draft, text, job.asked.tokens, GREEDY).chains.accepted == found.accepted
    print(f"reported, greedy: {job.facts.greedy.own.tau:.3f}")
    assert abs(real_tau(found) / job.facts.greedy.own.tau - 1) < 0.02


def _text(prompts_SP: torch.Tensor, plain: Decoded, new_tokens: int) -> OwnText:
    """What was written, as acceptance is measured on it: filled up to the limit behind texts that end."""
    lengths_S = torch.tensor([len(row) for row in plain.tokens])
    rows = [[*row, *[0] * (new_tokens - len(row))] for row in plain.tokens]
    return OwnText(torch.cat((prompts_SP, torch.tensor(rows)), 1), prompts_SP.shape[1], lengths_S)
