"""The three renderers, on plain reports and on hostile ones."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
import yaml

from optcore.manifest import Parent
from optcore.report import (
    Candidate,
    EngineNotes,
    Front,
    Goal,
    LayerError,
    Measurement,
    Report,
    Series,
    Setting,
    StageCost,
    Step,
    Trial,
)
from optcore.report.card import escape, fenced, render_card
from optcore.report.page import render_page
from optcore.report.plots import (
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    layer_curve,
    measurement_bars,
    nice_ticks,
    series_curve,
    stage_bars,
    trial_bars,
)
from optcore.report.scatter import HEIGHT as SCATTER_HEIGHT
from optcore.report.scatter import scatter
from optcore.report.text import render_table

HOSTILE = "x|y`](http://evil.example)<script src=//evil.example>\n---\n```\n# *h*\x1b[31m&lt; {{ 7*7 }} $(id)"
EXTREMES = (None, 0.0, -1.0, 5e-324, 1e-9, 1.0, 1.7e308)


def report(text: str = "tiny", **more: object) -> Report:
    fields: dict[str, object] = {
        "model": text,
        "source_digest": "a" * 64,
        "artifact_digest": "b" * 64,
        "scheme": text,
        "recipe": {"chain": [{"technique": "ptq", "scheme": "nvfp4"}], "name": text},
        "measurements": (
            Measurement(name="bytes", title=text, unit="bytes", source=10.7e6, result=3.4e6, better="lower", note=text),
            Measurement(name="kl", title="KL", unit=text, source=None, baseline=0.05, result=0.03, better="lower"),
        ),
        "stages": (StageCost(name=text, seconds=3.5, peak_memory_bytes=10**9, cached=True),),
        "trials": (trial(text, 0.12, "went on to 1-ptq-fallback1"), trial(text, 0.03, text)),
        "steps": (
            Step(stage="", what="source", parameters=5000, weight_bytes=10**4),
            Step(stage="1-prune-rival", what=text, parameters=4000, weight_bytes=8000, values={"kl": 0.5}, rival=True),
            Step(stage="1-prune", what=text, parameters=4000, weight_bytes=8000, values={"kl": 0.25}),
            Step(stage="export", what=text, parameters=4000, weight_bytes=3000, values={"kl": 0.03}),
        ),
        "layer_errors": tuple(LayerError(layer=f"{text}{i}", relative_error=i / 10) for i in range(3)),
        "series": (Series(name="loss", title=text, points=((0, 3), (1, 2))),),
        "deployment": (notes(text),),
        "notices": (text,),
        "environment": {text: text},
    }
    return Report.model_validate(fields | more)


def notes(text: str) -> EngineNotes:
    settings = (Setting(name=text, value=text, why=text), Setting(name="--flag", why="why"))
    return EngineNotes(
        engine=text,
        given=text,
        documentation=text,
        conditions=(text,),
        settings=settings,
        commands=(text,),
        hardware=(text,),
    )


def trial(text: str, kl: float, then: str) -> Trial:
    return Trial(
        stage=text, tried=text, metric="kl", value=kl, bound=0.05, better="lower", passed=kl <= 0.05, then=then
    )


def extremes() -> Report:
    rows = [
        Measurement(name="m", title="M", unit=unit, source=source, baseline=source, result=result, better="higher")
        for source in EXTREMES
        for result in EXTREMES
        for unit in ("bytes", "share", "seconds", "")
    ]
    series = Series(name="s", title="S", points=((-1.7e308, -1.7e308), (0, 5e-324), (1.7e308, 1.7e308)))
    trials = tuple(trial("t", value, "kept") for value in EXTREMES if value is not None)
    return report(
        measurements=tuple(rows), trials=trials, series=(series, Series(name="none", title="none", points=()))
    )


class Markup(HTMLParser):
    """Collects the tags of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def front_matter(card: str) -> dict[str, object]:
    loaded = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def test_the_table_is_aligned_and_says_what_got_better() -> None:
    table = render_table(report())
    assert "-68.2%" in table
    assert "better" in table
    assert "max scales" in table
    rows = table.splitlines()[2:6]
    assert len({row.find("result") for row in rows[:1]} | {rows[0].rfind("result")}) == 1
    assert rows[1].startswith("----")


def test_the_table_lets_no_control_character_through() -> None:
    assert all(character.isprintable() for line in render_table(report(HOSTILE)).split("\n") for character in line)


def test_the_table_leaves_out_what_nobody_measured() -> None:
    bare = report(measurements=(Measurement(name="m", title="M", source=1, result=None),), stages=(), notices=())
    assert "max scales" not in render_table(bare)
    assert "stage" not in render_table(bare)


def test_what_gates_measured_is_told_everywhere() -> None:
    tried = report(
        trials=(
            Trial(
                stage="1-ptq",
                tried="INT4",
                metric="kl",
                value=0.12,
                bound=0.05,
                better="lower",
                passed=False,
                then="went on to 1-ptq-fallback1",
            ),
            Trial(
                stage="2-heal",
                tried="Healed",
                metric="accuracy",
                value=0.912,
                bound=0.9,
                better="higher",
                passed=True,
                then="kept",
            ),
        )
    )
    table = render_table(tried)
    assert (
        "gate: 1-ptq (INT4): KL to the source 0.12 nats/token, at most 0.05 nats/token: missed, "
        "went on to 1-ptq-fallback1" in table
    )
    assert "gate: 2-heal (Healed): Accuracy 91.2%, at least 90%: passed, kept" in table
    cells = "| KL to the source 0.12 nats/token | at most 0.05 nats/token | no | went on to 1-ptq-fallback1 |"
    assert cells in render_card(tried)
    page = render_page(tried)
    assert "<td>at least 90%</td>" in page
    assert {title: [bar.share for bar in bars] for title, bars in trial_bars(tried.trials).items()} == {
        "KL to the source": [1.0],
        "Accuracy": [1.0],
    }
    assert page.count('class="wide"') == render_page(report(trials=())).count('class="wide"') + 2


def test_the_card_tells_the_hub_what_it_is() -> None:
    recipe = {"chain": [{"technique": "ptq", "scheme": "nvfp4"}], "publish": {"repo_id": "me/small"}}
    card = render_card(report(base_model="Qwen/Qwen3-8B", license="apache-2.0", schemes=("nvfp4",), recipe=recipe))
    assert front_matter(card) == {
        "base_model": "Qwen/Qwen3-8B",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lathe", "compressed-tensors", "nvfp4"],
        "quantized_by": "me",
    }
    assert "\n# small\n" in card
    assert 'name = "me/small"' in card
    assert "vllm serve me/small" in card


def of(role: str, name: str, *parents: Parent, revision: str = "c" * 40) -> Parent:
    return Parent(role=role, name=name, revision=revision, sha256="0" * 64, parents=parents)


@pytest.mark.parametrize(
    ("lineage", "more", "base", "relation"),
    [
        ((of("source", "a/b"), of("teacher", "a/big")), {"schemes": ("int4",)}, "a/b", "quantized"),
        ((of("source", "a/b"), of("merged", "c/d")), {"target": "dense"}, ["a/b", "c/d"], "merge"),
        ((of("source", "a/big"), of("student", "a/small")), {"target": "dense"}, "a/small", "finetune"),
        ((of("source", "out", of("source", "a/b"), revision=""),), {"target": "gguf"}, "a/b", "quantized"),
        ((of("source", "folder", revision=""),), {"schemes": ("int4",)}, None, None),
    ],
)
def test_the_base_model_is_whose_weights_these_are(
    lineage: tuple[Parent, ...], more: dict[str, Any], base: object, relation: str | None
) -> None:
    card = render_card(report(lineage=lineage, **more))
    head = front_matter(card)
    assert (head.get("base_model"), head.get("base_model_relation")) == (base, relation)
    assert all(f"{each.role.capitalize()}: {escape(each.name)}@" in card for each in lineage[1:])


@pytest.mark.parametrize(
    ("target", "library", "used"),
    [
        ("gguf", "gguf", "llama-server --model small/model.gguf"),
        ("onnx", "onnx", "import onnxruntime_genai"),
        ("modelopt", "Model Optimizer", "trtllm-serve small"),
        ("compact", "lathe", "optcore.export.compact_decoder"),
        ("awq", "transformers", "with `gptqmodel` installed"),
        ("fp8", "transformers", "In transformers:"),
    ],
)
def test_the_card_names_what_loads_the_target(target: str, library: str, used: str) -> None:
    card = render_card(report(target=target, recipe={"publish": {"repo_id": "me/small"}}))
    assert front_matter(card)["library_name"] == library
    assert used in card


def test_a_graph_of_an_encoder_is_run_and_generates_nothing() -> None:
    card = render_card(report(target="onnx", task="text-classification"))
    assert "ort.InferenceSession" in card
    assert "genai" not in card


def test_a_licence_without_an_identifier_goes_along_by_name_and_link() -> None:
    given = {"license": "other", "license_name": "gemma", "license_link": "https://example.com/l", "language": ["en"]}
    head = front_matter(render_card(report(**given)))
    assert {name: head[name] for name in given} == given


def test_the_card_says_how_to_check_it() -> None:
    card = render_card(report(data_digest="d" * 64, recipe_digest="e" * 64))
    for words in ("lathe verify path/to/this/folder --key", f"Calibration text: SHA-256 `{'d' * 64}`", "e" * 64):
        assert words in card


def test_a_card_of_a_model_that_is_not_quantized_needs_no_package_for_formats() -> None:
    card = render_card(report(base_model="Qwen/Qwen3-8B", target="dense"))
    assert front_matter(card)["base_model_relation"] == "finetune"
    assert "compressed-tensors" not in card
    assert "hardware that has kernels" not in card


def test_a_card_of_a_classifier_loads_it_as_one() -> None:
    card = render_card(report(task="text-classification"))
    assert front_matter(card)["pipeline_tag"] == "text-classification"
    assert "from transformers import AutoModelForSequenceClassification, AutoTokenizer" in card
    assert "vllm serve" not in card


def test_the_hubs_own_client_reads_the_card() -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(render_card(report(HOSTILE, base_model="Qwen/Qwen3-8B", license="apache-2.0")))
    assert card.data.base_model == "Qwen/Qwen3-8B"
    assert card.data.license == "apache-2.0"
    assert card.text.startswith("\n# ")


def test_the_card_claims_no_base_model_or_licence_that_it_does_not_know() -> None:
    assert not {"base_model", "base_model_relation", "license"} & set(front_matter(render_card(report())))


def test_the_card_shows_hostile_text_as_text() -> None:
    card = render_card(report(HOSTILE))
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card, flags=re.S | re.M)
    prose = re.sub(r"(?<!\\)`[^`\n]*`", "code", prose)
    assert "<script" not in prose
    assert "](http" not in prose.replace(r"\](http", "")
    table = [line for line in prose.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
    assert columns == [6] * 4 + [5] * 6 + [4] * 4 + [7] * 4 + [4] * 3
    assert yaml.safe_load(card.rpartition("yaml\n")[2].rpartition("\n`")[0]) == report(HOSTILE).recipe


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("", "a ```` b").startswith("`````\n")
    assert fenced("", "plain").startswith("```\n")


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    markup = Markup(render_page(report(HOSTILE)))
    assert {tag for tag, _ in markup.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "div", "h1", "h2",
        "h3", "p", "span", "small", "ul", "li", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure",
        "figcaption", "svg", "text", "rect", "line", "path", "circle", "dl", "dt", "dd", "code", "pre",
    }  # fmt: skip
    names = {name for _, attributes in markup.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in {"src", "href", "xlink:href", "style"}}
    policy = next(attrs for tag, attrs in markup.tags if attrs.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_can_be_read_aloud() -> None:
    markup = Markup(render_page(report()))
    ids = [attributes["id"] for _, attributes in markup.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = [attributes for tag, attributes in markup.tags if tag == "svg"]
    assert len(pictures) == 6
    assert all(attributes["role"] == "img" and attributes["aria-labelledby"] in ids for attributes in pictures)
    assert all(attributes.get("scope") for tag, attributes in markup.tags if tag == "th")
    headings = [int(tag[1]) for tag, _ in markup.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


@pytest.mark.parametrize("render", [render_table, render_card, render_page])
def test_any_float_can_be_shown(render: object) -> None:
    assert callable(render)
    text = render(extremes())
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert len(text) > 1000


@pytest.mark.parametrize("render", [render_table, render_card, render_page])
def test_an_empty_report_can_be_shown(render: object) -> None:
    assert callable(render)
    empty = Report(model="m", source_digest="", artifact_digest="", scheme="s", recipe={})
    assert "None" not in render(empty)


def test_bars_are_shares_of_the_longest() -> None:
    bars = measurement_bars(Measurement(name="m", title="M", source=4, baseline=-1, result=1))
    assert [(bar.kind, bar.share) for bar in bars] == [("source", 1), ("max", 0), ("result", 0.25)]
    assert stage_bars([StageCost(name="s", seconds=0, peak_memory_bytes=0)])[0].share == 0


def test_curves_stay_in_their_frame() -> None:
    long = Series(name="s", title="S", points=tuple((float(i), (-1.0) ** i * 1.7e308) for i in range(5000)))
    curve = series_curve(long)
    assert curve is not None
    assert len(curve.marks) == MAX_POINTS
    assert all(0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT for mark in curve.marks)
    assert curve.marks[-1].label.startswith("4,999")
    assert layer_curve(()) is None


def test_layers_are_named_below_their_curve() -> None:
    curve = layer_curve([LayerError(layer=f"layer {i}", relative_error=0.1) for i in range(9)])
    assert curve is not None
    assert [tick.label for tick in curve.x_ticks] == ["layer 0", "layer 4", "layer 8"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, (0, 5, 10)), (0, 0.04, (0, 0.01, 0.02, 0.03, 0.04)), (-1, 1, (-1, -0.5, 0, 0.5, 1)),
        (3, 3, (3,)), (-1.7e308, 1.7e308, (-1.7e308, 1.7e308)),
    ],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_a_step_says_what_it_cost_and_a_chain_measured_only_at_its_end_has_none() -> None:
    found = report("pruned")
    text, card, page = render_table(found), render_card(found), render_page(found)
    assert re.search(r"^pruned +4,000 +8 kB +0.25 pruned$", text, re.M)
    assert re.search(r"^source +5,000 +10 kB +–$", text, re.M)  # noqa: RUF001
    assert "| pruned | 4,000 | 8 kB | 0.25 pruned |" in card
    assert "<td>0.25 pruned</td>" in page
    plain = report("pruned", steps=())
    assert not any("Step by step" in words for words in (render_table(plain), render_card(plain), render_page(plain)))


def race(text: str = "tiny") -> Front:
    losses = {"c01": ("winner", 300, 0.05), "c02": ("front", 500, 0.001), "c03": ("dominated", 600, 0.06)}
    measured = [
        Candidate(name=name, chain=text, recipe={}, status=status, weight_bytes=size, kl=kl, dominated_by=by)  # type: ignore[arg-type]
        for (name, (status, size, kl)), by in zip(losses.items(), ("", "", "c01"), strict=True)
    ]
    stopped = Candidate(name="c04", chain=text, recipe={}, status="stopped", why=text, weight_bytes=200, kl=2.0)
    refused = Candidate(name="c05", chain=text, recipe={}, status="refused", why=text)
    goals = (
        Goal(name="max_kl", bound=0.1, value=0.05, met=True),
        Goal(name="max_bytes", bound=9, value=300, met=False),
    )
    return Front(
        candidates=(*measured, stopped, refused),
        goals=goals,
        stages_run=7,
        stages_reused=9,
        seconds=10,
        seconds_apart=30,
        seconds_apart_inferred=4,
    )


def test_a_race_is_shown_by_all_renderers() -> None:
    found = report(front=race())
    assert Report.model_validate_json(found.to_json()) == found
    for text in (render_table(found), render_card(found), render_page(found)):
        assert "dominated by c01" in text
        assert "7 stages were run, and 9 times one was shared" in text
        assert "4 s of it inferred" in text
        assert "at most 0.1 nats/token was asked for: met" in text.replace("\\", "")
        assert "missed" in text
    assert 'id="race"' not in render_page(report())


def test_a_hostile_race_stays_text() -> None:
    page = render_page(report(front=race(HOSTILE)))
    assert "<script" not in page
    assert "<script" not in render_card(report(front=race(HOSTILE)))
    assert "\x1b" not in render_table(report(front=race(HOSTILE)))


def test_points_of_a_race_lie_where_their_values_say() -> None:
    found = scatter(race())
    assert found
    by_name = {dot.name: dot for dot in found.dots}
    assert set(by_name) == {"c01", "c02", "c03", "c04"}
    assert by_name["c04"].x < by_name["c01"].x < by_name["c02"].x < by_name["c03"].x
    assert by_name["c04"].y < by_name["c03"].y < by_name["c01"].y < by_name["c02"].y, "SVG counts downwards"
    assert all(0 <= dot.x <= WIDTH and 0 <= dot.y <= SCATTER_HEIGHT for dot in found.dots)
    assert "logarithmic" in found.title
    assert found.path.count("L") == 1, "the line goes along the front alone"
    few = race().model_copy(update={"candidates": race().candidates[:1]})
    assert scatter(few) is None
    same = race().candidates[0]
    alike = race().model_copy(update={"candidates": (same, same.model_copy(update={"name": "c09", "kl": 0.0}))})
    assert scatter(alike)
