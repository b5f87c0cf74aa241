"""The form for a new job: it has every field of a recipe, gives back what it shows, and says what cannot be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from fastapi.testclient import TestClient
from fixtures.posted_form import PostedForm

from api.dashboard.pages import render
from api.dashboard.recipe_form import draft as drafts
from api.dashboard.recipe_form import rules
from api.dashboard.recipe_form.builder import Builder
from api.dashboard.recipe_form.control import Control
from api.dashboard.recipe_form.prominent import PROMINENT
from api.dashboard.recipe_form.rules import Rules
from api.dashboard.recipe_form.schema import recipe_schema, resolved, variants
from api.dashboard.recipe_form.shown import shown
from api.dashboard.recipe_form.starters import starter
from api.main import create_app
from api.settings import Settings
from api.store import credentials, keys
from api.store.session import Sessions
from api.templates import templates
from lathe.estimate_models import Estimate, EstimateProblem, WorkerFit
from optcore.estimate.document import Machine, ResultEstimate, StageEstimate
from optcore.evaluate import AnyEvaluator
from optcore.export import AnyExport
from optcore.frozen import members, tag
from optcore.plan import check
from optcore.recipe import load_recipe, recipe_from
from optcore.schemes import PRESETS
from optcore.techniques import AnyTechnique

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.yaml"))
OURS = {"Sec-Fetch-Site": "same-origin"}
FORM = {**OURS, "Content-Type": "application/x-www-form-urlencoded"}
ENTRY = {"technique": "ptq", "scheme": "nvfp4"}
Post = Callable[..., Any]


@pytest.fixture
def reader(settings: Settings, sessions: Sessions) -> Iterator[TestClient]:
    with TestClient(create_app(settings), follow_redirects=False, raise_server_exceptions=False) as client:
        with sessions.begin() as opened:
            _, key = keys.create(opened, "acme")
        assert client.post("/sign-in", data={"key": key}, headers=OURS).status_code == 303
        yield client


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether choices fit is another question."""
    monkeypatch.setattr(rules, "MOST_SECONDS", 0)


def _page(draft: drafts.Draft) -> PostedForm:
    return PostedForm(render("new_draft.html", draft=draft, **shown(draft, [], {})))


def _controls(control: Control) -> Iterator[Control]:
    yield control
    for each in (*control.children, *control.folded):
        yield from _controls(each)


def _post(reader: TestClient, pairs: list[tuple[str, str]], path: str = "/new/draft", **headers: str) -> Any:
    return reader.post(path, content=urlencode(pairs), headers={**FORM, **headers})


def _text(page: str) -> Any:
    return yaml.safe_load(dict(PostedForm(page).pairs)["recipe"])


def _members() -> list[tuple[str, str, str]]:
    unions = (("/chain/0", AnyTechnique), ("/target", AnyExport), ("/evaluate/0", AnyEvaluator))
    return [(place, kind.__name__, tag(kind)) for place, union in unions for kind in members(union)]


@pytest.mark.parametrize(("place", "definition", "name"), _members(), ids=lambda value: value)
@pytest.mark.usefixtures("no_trials")
def test_every_field_of_a_recipe_has_a_control(place: str, definition: str, name: str) -> None:
    key = place.split("/")[1]
    schema = resolved(recipe_schema()["properties"][key])
    kinds = variants(resolved(schema.get("items", schema)))
    begun = next(starter(each) for each in kinds if name in starter(each).values())
    document = {"chain": [ENTRY], key: begun if key == "target" else [begun]}
    controls = {each.pointer: each for each in _controls(Builder(document, [], Rules(document), {}).top)}
    fields = recipe_schema()["$defs"][definition]["properties"]
    for field, said in fields.items():
        if "const" in said:
            continue
        found = controls[f"{place}/{field}"]
        assert found.label
        nested = resolved(said)
        if nested.get("type") == "object" and "properties" in nested:
            assert {f"{place}/{field}/{inner}" for inner in nested["properties"]} <= set(controls)
    assert {f"/{field}" for field in recipe_schema()["properties"]} - {"/version"} <= set(controls)


def test_what_is_seen_at_once_are_fields_that_exist() -> None:
    every = [recipe_schema(), *recipe_schema()["$defs"].values()]
    assert {field for each in every for field in each.get("properties", ())} >= PROMINENT


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("no_trials")
def test_a_recipe_comes_back_from_its_form(path: Path) -> None:
    recipe = load_recipe(path)
    shown_first = drafts.of_recipe(recipe)
    assert recipe_from(shown_first.document) == recipe
    pairs = _page(shown_first).pairs
    without_text = [(name, value) for name, value in pairs if name not in ("recipe", "shown")]
    back = drafts.of_posted([*without_text, ("do", "fields")])
    assert recipe_from(back.document) == recipe
    assert drafts.of_posted(pairs).text == shown_first.text, "nothing was changed"


@pytest.mark.usefixtures("no_trials")
def test_a_recipe_with_everything_said_comes_back_too() -> None:
    for name in ("prune-distill-int4", "with-gate-and-fallback", "qad", "merge-sweep", "mixed-by-hand"):
        recipe = load_recipe(ROOT / "docs" / "recipes" / f"{name}.yaml")
        whole = recipe.model_dump(mode="json")
        pairs = _page(drafts.Draft(whole, drafts.to_yaml(whole))).pairs
        back = drafts.of_posted([*pairs, ("do", "fields")])
        assert recipe_from(back.document) == recipe, name


ODD = {
    "name": 5,
    "model": {"id": "a/b", "wrong": [1, {"two": None}], "/slash~": "x"},
    "calibration": [1, 2],
    "chain": [{**ENTRY, "ignore": ["a,b", "re:c d"], "gptq": {"damping": "soon"}}, "words", {"technique": "none"}],
    "metadata": {"a: b": "c", "d": "two\nlines"},
    "seed": True,
    "extra": {"deep": {"er": []}},
}


@pytest.mark.usefixtures("no_trials")
def test_what_no_recipe_may_say_is_kept_too_until_it_is_corrected() -> None:
    pairs = _page(drafts.Draft(ODD, drafts.to_yaml(ODD))).pairs
    assert drafts.of_posted([*pairs, ("do", "fields")]).document == ODD


def test_comments_stay_until_a_field_says_something_else(reader: TestClient) -> None:
    text = f"# why\nmodel: {{id: a/b}} # this one\nchain: [{ENTRY}]\n"
    page = PostedForm(_post(reader, [("recipe", text), ("do", "")]).text)
    assert dict(page.pairs)["recipe"] == text
    assert dict(PostedForm(_post(reader, page.pairs).text).pairs)["recipe"] == text
    other = _post(reader, page.with_fields({"text:/model/id": "c/d"})).text
    assert _text(other) == {"model": {"id": "c/d"}, "chain": [ENTRY]}
    assert "# why" not in other


def test_a_field_changes_the_yaml_and_the_yaml_the_fields(reader: TestClient) -> None:
    page = PostedForm(reader.get("/new").text)
    answer = _post(reader, page.with_fields({"number:/calibration/samples": "1e2", "value:/chain/0/scheme": "int4"}))
    said = _text(answer.text)
    assert (said["calibration"]["samples"], said["chain"][0]["scheme"]) == (100.0, "int4")
    assert list(said)[:2] == ["name", "model"], "keys stay where they were"
    page = PostedForm(answer.text)
    changed = dict(page.pairs)["recipe"].replace("int4", "fp8")
    fields = dict(PostedForm(_post(reader, page.with_fields({"recipe": changed})).text).pairs)
    assert fields["value:/chain/0/scheme"] == "fp8"


def test_buttons_work_without_a_script(reader: TestClient) -> None:
    page = reader.get("/new").text

    def press(do: str) -> Any:
        nonlocal page
        form = PostedForm(page)
        assert do in form.buttons, do
        page = _post(reader, [*form.pairs, ("do", do)]).text
        assert "<!doctype html>" in page
        return _text(page)

    numbers = {tag(kind): number for number, kind in enumerate(members(AnyTechnique))}
    said = press(f"add /chain {numbers['prune']}")
    assert [each["technique"] for each in said["chain"]] == ["prune", "ptq"], "before what quantizes"
    assert "goes before entry" in page
    said = press("down /chain/0")
    assert [each["technique"] for each in said["chain"]] == ["ptq", "prune"]
    assert "Pruning needs a model that is dense" in page
    press("up /chain/1")
    assert press("set /chain/1/gate")["chain"][1]["gate"] == {"metric": "kl", "max": 0.05}
    assert "gate" not in press("drop /chain/1/gate")["chain"][1]
    assert [each["evaluator"] for each in press("set /evaluate")["evaluate"]] == ["fidelity", "throughput"]
    assert len(press("drop /evaluate/0")["evaluate"]) == 1
    assert press("set /publish")["publish"] == {}
    assert "publish" not in press("drop /publish")
    target = _post(reader, PostedForm(page).with_fields({"as:/target": "7"})).text
    assert _text(target)["target"] == {"format": "dense"}
    assert "target" not in _text(_post(reader, PostedForm(target).with_fields({"as:/target": ""})).text)


def test_what_does_not_fit_is_said_beside_the_choice(reader: TestClient) -> None:
    page = PostedForm(reader.get("/new?template=gguf-llama-cpp").text)
    labels = dict(page.options["value:/chain/0/scheme"])
    assert labels["nvfp4"].endswith("(GGUF cannot hold nvfp4)")
    assert "(" not in labels["q5_k_m"]
    kinds = {label.split()[0].rstrip(":"): label for _, label in page.options["as:/target"]}
    assert "cannot hold q4_k" in kinds["compressed-tensors"]
    numbers = {tag(kind): number for number, kind in enumerate(members(AnyTechnique))}
    first = PostedForm(reader.get("/new").text)
    assert "disabled" in first.buttons[f"add /chain {numbers['palettize']}"]
    assert "disabled" not in first.buttons[f"add /chain {numbers['qad']}"]
    empty = _post(reader, [("recipe", "model: {id: a/b}\nchain: []"), ("do", "")]).text
    assert "disabled" in PostedForm(empty).buttons[f"add /chain {numbers['qad']}"]
    assert "needs a model that is quantized" in empty


def test_choices_are_judged_although_something_else_is_wrong() -> None:
    document = {"model": {}, "seed": "x", "chain": [ENTRY], "target": {"format": "gguf"}, "publish": {}}
    judged = Rules(document)
    assert judged.against("/chain/0/scheme", "int4") == ""
    assert judged.against("/chain/0/scheme", "fp8") == "GGUF cannot hold fp8"
    assert document["seed"] == "x"


WRONG = """\
model: {id: a/b}
calibration:
  samples: -1
chain:
  - technique: ptq
    scheme: nvfp5
    oops: 1
"""


def test_each_complaint_is_at_its_field_and_at_its_line(reader: TestClient) -> None:
    text = _post(reader, [("recipe", WRONG), ("do", "")], **{"HX-Request": "true"}).text
    assert "<html" not in text
    for field, line in (("f/calibration/samples", 3), ("f/chain/0/scheme", 6)):
        assert f'data-field="{field}"' in text
        assert f'data-line="{line}"' in text
        assert f'id="{field}-bad"' in text
        assert f"{field}-bad" in text.split(f'id="{field}"')[1].split(">")[0], "described by its complaint"
    assert "Keys that are not known here" in text
    assert 'data-news="3 things to correct"' in text


def test_what_cannot_be_read_leaves_the_fields_as_they_were(reader: TestClient) -> None:
    page = PostedForm(reader.get("/new").text)
    broken = _post(reader, page.with_fields({"recipe": "model: ["}))
    assert "The YAML cannot be read" in broken.text
    after = PostedForm(broken.text)
    assert dict(after.pairs)["recipe"] == "model: ["
    assert dict(after.pairs)["value:/chain/0/scheme"] == "nvfp4"
    again = _text(_post(reader, [*after.pairs, ("do", "fields")]).text)
    assert again["chain"] == [ENTRY]


def test_submitting_fields_or_text_makes_the_job_that_is_shown(reader: TestClient) -> None:
    page = PostedForm(reader.get("/new?template=fit-on-8-gb").text)
    changed = page.with_fields({"text:/name": "from a field"})
    first, again = (_post(reader, changed, "/new") for _ in range(2))
    assert first.status_code == 303
    assert first.headers["location"] == again.headers["location"]
    job = reader.get(first.headers["location"]).text
    assert "from a field" in job
    like = reader.get("/new?like=" + first.headers["location"].rpartition("/")[2]).text
    assert recipe_from(_text(like)) == recipe_from({**templates()["fit-on-8-gb"].recipe, "name": "from a field"})


def test_credentials_are_offered_by_name_and_unknown_ones_told(
    reader: TestClient, sessions: Sessions, settings: Settings
) -> None:
    with sessions.begin() as opened:
        credentials.put(opened, settings.vault, "acme", "hub-main", "hf_secret")
        credentials.put(opened, settings.vault, "other", "hub-theirs", "hf_secret")
    text = yaml.safe_dump({"model": {"id": "a/b"}, "chain": [ENTRY], "publish": {"repo_id": "a/c"}})
    page = _post(reader, [("recipe", text), ("do", "")]).text
    assert '<option value="hub-main">' in page
    assert "hub-theirs" not in page
    assert "hf_secret" not in page
    assert 'data-field="f/publish/credential"' in page
    named = PostedForm(page).with_fields({"text:/publish/credential": "hub-main"})
    assert "Nothing to correct" in _post(reader, named).text


def test_a_local_path_is_judged_while_it_is_typed(reader: TestClient) -> None:
    text = yaml.safe_dump({"model": {"path": "/etc"}, "chain": [ENTRY]})
    page = _post(reader, [("recipe", text), ("do", "")]).text
    assert "outside the folders" in page
    assert 'data-field="f/model/path"' in page


def test_templates_are_whole_recipes_and_there_for_programs(
    client: TestClient, reader: TestClient, sessions: Sessions
) -> None:
    listed = client.get("/v1/templates").json()["data"]
    assert [each["name"] for each in listed] == list(templates())
    files = {path.stem for path in (ROOT / "api" / "templates").glob("*.yaml")}
    assert files == set(templates())
    start = reader.get("/new").text
    for each in listed:
        check(recipe_from(each["recipe"]))
        assert f'href="/new?template={each["name"]}"' in start
        assert _text(reader.get(f"/new?template={each['name']}").text) == each["recipe"]
    assert reader.get("/new?template=../../etc/passwd").status_code == 404
    assert TestClient(client.app).get("/v1/templates").status_code == 401


def test_eight_billion_parameters_fit_on_8_gb() -> None:
    entry = templates()["fit-on-8-gb"].recipe["chain"][0]
    hidden, inner, layers, keys_and_values, vocabulary = 4096, 12288, 36, 1024, 151936  # Qwen3-8B
    linears = [*[(hidden, hidden)] * 2, *[(keys_and_values, hidden)] * 2, *[(inner, hidden)] * 2, (hidden, inner)]
    scheme = PRESETS[entry["scheme"]]
    weights = layers * sum(scheme.bits_per_weight(shape) * shape[0] * shape[1] for shape in linears) / 8
    tables = 2 * vocabulary * hidden * 2
    assert 5.8e9 < weights + tables < 6.2e9
    assert entry["kv_cache"] == "fp8"


def test_other_sites_and_strangers_get_nothing(reader: TestClient, job_id: str) -> None:
    assert _post(reader, [("recipe", "x")], **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    reader.cookies.clear()
    assert _post(reader, [("recipe", "x")]).status_code == 303
    assert _post(reader, [("recipe", "x")], **{"HX-Request": "true"}).status_code == 401


CONTRADICTIONS = [
    [
        ("map:/chain", ""),
        ("list:/chain/x/y", ""),
        ("text:/name/deeper", "x"),
        ("text:/name", "y"),
        ("list:/name/0", ""),
    ],
    [("list:/chain", ""), ("text:/chain/7", "x")],
    [("list:/chain", ""), ("text:/chain/-1", "x")],
    [("list:/chain", ""), ("text:/chain/__proto__", "x")],
    [("text:" + "/a" * 40, "x")],
    [("do", "add /chain 99")],
    [("do", "drop /chain/9")],
    [("do", "up /chain/0")],
    [("do", "set /__proto__/polluted")],
    [("do", "exec /chain")],
    [("as:/target", "99")],
    [("as:/target", "-x")],
]


def test_what_our_form_never_posts_is_refused(reader: TestClient) -> None:
    shown_empty = drafts.Draft({}, "").shown
    for pairs in CONTRADICTIONS:
        answer = _post(reader, [("recipe", ""), ("shown", shown_empty), *pairs])
        assert (pairs, answer.status_code) == (pairs, 400)
        assert "fit together" in answer.text or "in the form" in answer.text or "no such button" in answer.text


HOSTILE = [
    "[" * 20_000,
    "{a: " * 300 + "1" + "}" * 300,
    "\n".join(f"k{number}: 1" for number in range(20_000)),
    "\n".join(f"k{number}: 1" for number in range(900)),
    "chain:\n" + "\n".join("- {technique: ptq, scheme: fp8}" for _ in range(200)),
    "chain: [" + ", ".join(["{technique: merge, others: [" + "{model: {id: a/b}}, " * 16 + "]}"] * 16) + "]",
    "metadata: {__proto__: {x: 1}, constructor: y}\nmodel: {__proto__: 1}",
    "? {a: 1}\n: 2",
    "1: 2\n2001-01-01: 3\nmodel: {4: 5}\nchain: [{6: 7}]",
    "name: !!binary aGVsbG8=\nseed: .nan\npriority: .inf",
    "name: <script>alert(1)</script>\nmodel: {id: '\"><img src=x onerror=alert(1)>'}\n<b>: 1\nchain: [{<i>: 1}]",
]


def test_no_text_breaks_the_form(reader: TestClient) -> None:
    for text in HOSTILE:
        answer = _post(reader, [("recipe", text), ("do", "")])
        assert (text[:40], answer.status_code) == (text[:40], 200)
        assert "to correct" in answer.text
        for markup in ("<script>alert", "<img src=x", "<b>", "<i>"):
            assert markup not in answer.text
        assert len(answer.content) < 3_000_000
        submitted = _post(reader, PostedForm(answer.text).pairs, "/new")
        assert (text[:40], submitted.status_code) == (text[:40], 422)


def test_a_form_is_bounded(reader: TestClient) -> None:
    assert _post(reader, [(f"text:/k{number}", "1") for number in range(10_000)]).status_code == 400
    many = _post(reader, [("shown", drafts.Draft({}, "").shown), *[(f"text:/k{n}", "1") for n in range(5000)]])
    assert many.status_code == 200
    assert "Keys that are not known here" in many.text
    assert _post(reader, [("recipe", "x" * 900_000)]).status_code == 413
    nul = [("shown", drafts.Draft({}, "").shown), ("value:/name", '"\\0"')]
    assert _post(reader, nul).status_code == 400


def _estimate(**changes: Any) -> Estimate:
    machine = Machine(device="cuda", gpus=1, gpu_kind="NVIDIA <H200>", gpu_memory_bytes=141 * 10**9)
    stage = StageEstimate(
        stage="1-ptq",
        kind="ptq gptq",
        seconds=60,
        seconds_low=30,
        seconds_high=120,
        host_memory_bytes=2 * 10**9,
        gpu_memory_bytes=3 * 10**9,
        disk_bytes=10**9,
        raw_seconds=60,
        raw_memory_bytes=10**9,
    )
    problem = EstimateProblem(pointer="/hardware", reason="too <b>small</b>", remedy="rent more", of_machine=True)
    fits = WorkerFit(worker_id="w", host="gpu-1", machine=machine, fits=False, reasons=("no room",), seconds=60)
    values = {
        "allowed_to_proceed": False,
        "problems": (problem,),
        "machine": machine,
        "stages": (stage,),
        "results": (ResultEstimate(format="gguf", weight_bytes=5 * 10**8),),
        "source_bytes": 10**9,
        "seconds": 60,
        "seconds_low": 30,
        "seconds_high": 120,
        "cost": 1.5,
        "cost_low": 1,
        "cost_high": 2,
        "currency": "EUR",
        "learned_from": 7,
        "workers": (fits,),
    }
    return Estimate.model_validate({**values, **changes})


def test_an_estimate_is_shown() -> None:
    text = render("estimate.html", estimate=_estimate())
    for said in ("1-ptq", "50 % of", "1.50 EUR", "1.00 to 2.00", "7 finished stages", "no room", "does not fit"):
        assert said in text, said
    assert "<b>" not in text
    assert "&lt;H200&gt;" in text
    sizes = tuple(
        ResultEstimate(candidate=name, format="gguf", weight_bytes=size) for name, size in (("c01", 2e8), ("c02", 5e8))
    )
    text = render("estimate.html", estimate=_estimate(results=sizes))
    for said in ("gguf, by candidate", "200 MB to 500 MB", "20 to 50 % of"):
        assert said in text, said
    bare = _estimate(allowed_to_proceed=True, problems=(), results=(), workers=(), cost=None, learned_from=0)
    text = render("estimate.html", estimate=bare)
    assert "formulas alone" in text
    assert "EUR" not in text
    assert "least that the recipe asks for" in text


def test_what_is_not_about_size_is_not_said_to_be_too_small() -> None:
    wrong = EstimateProblem(pointer="/chain/0", reason="quantized twice")
    assert "does not fit" not in (text := render("estimate.html", estimate=_estimate(problems=(wrong,))))
    assert "cannot run" in text
    assert "too small<" not in text
    refused = render("estimate.html", estimate=_estimate(problems=(wrong,), stages=(), results=(), workers=()))
    assert "no estimate" in refused
    assert "quantized twice" in refused
    for figure in ("Time", "0 s", "H200", "CPU core", "does not fit"):
        assert figure not in refused, figure
    nobody = render("estimate.html", estimate=_estimate(machine=Machine(device="cuda", gpus=1), workers=()))
    assert "On 1 × GPU of any kind, which" in nobody  # noqa: RUF001
