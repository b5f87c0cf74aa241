"""What the documentation says to type, typed: the notebook, Python, `lathe` and curl, against a real service."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.doc_blocks import ROOT, Block, blocks
from fixtures.engine_runs import run_here
from fixtures.receiver import Receiver
from fixtures.service import Lathe
from fixtures.small_recipes import MakeSmall
from standardwebhooks import Webhook
from typer.testing import CliRunner

from docs.pages.notebook import NOTEBOOK
from lathe.cli import app

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(600)]

PAGES = ("README.md", "docs/quickstart.md", "docs/webhooks.md", "docs/operations.md", "docs/restructuring.md")
BLOCKS = [block for block in blocks() if block.page in PAGES and not block.reason]
PYTHON = {page: [block for block in BLOCKS if block.page == page and block.language == "python"] for page in PAGES}
ENDLESS = "lathe up"
"""The service that all of this talks to is one."""


LONG = [pytest.mark.proof, pytest.mark.slow]
"""Marks of what computes for a while what the notebook, in the main, has shown already."""


def _can_run(block: Block) -> bool:
    """Not so the commands of `dev.py`, which set machines up and run for minutes."""
    return block.language == "shell" and "dev.py" not in block.text and ENDLESS not in block.text


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The notebook's own: what one of these tests computed, the next one finds in the cache."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    source = next(text for cell in cells if (text := "".join(cell["source"])).startswith("recipe = "))
    made: dict[str, Any] = {}
    exec(source.partition("\ntry:")[0], made)
    return {**made["recipe"], "model": {"path": str(ROOT / "models" / "stdlib-5m")}}


@pytest.fixture
def desk(lathe: Lathe, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader sits: a folder with recipes, and the environment that the pages speak of."""
    (tmp_path / "docs" / "recipes").mkdir(parents=True)
    for name in ("recipe.yaml", "docs/recipes/demo.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    named = {
        "LATHE_URL": lathe.stack.url,
        "LATHE_API_KEY": lathe.stack.api_key,
        "LATHE_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_the_notebook_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(desk / name))
    (desk / "models").symlink_to(ROOT / "models")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(desk)}}).execute()
    said = json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    for words in ("/chain/0/scheme", "job.succeeded", "'succeeded'", "Perplexity"):
        assert words in said
    assert list((desk / "quickstart-result").glob("*.safetensors"))


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if "webhooks" in page else LONG) for page, found in PYTHON.items() if found],
)
def test_python_of_the_pages_runs(page: str, desk: Path, small_recipe: MakeSmall) -> None:
    names = _given(page, desk, small_recipe)
    for block in PYTHON[page]:
        exec(compile(block.text, block.name, "exec"), names)
    shown = {"docs/webhooks.md": "message", "docs/quickstart.md": "model"}.get(page)
    assert shown is None or names[shown]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.name, marks=LONG if "lathe run" in block.text else [])
        for block in filter(_can_run, BLOCKS)
    ],
)
def test_commands_of_the_pages_work(
    block: Block, desk: Path, lathe: Lathe, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _ids(block, lathe, receiver).items():
        monkeypatch.setenv(name, value)
    if "curl" in block.text:
        subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=True, cwd=desk)
        return
    for line in block.lines:
        _type(shlex.split(os.path.expandvars(line)), lathe)


def _given(page: str, desk: Path, small_recipe: MakeSmall) -> dict[str, Any]:
    """What a block takes for granted."""
    if page == "docs/restructuring.md":
        run_here(small_recipe(ROOT / "docs" / "recipes" / "palettize.yaml"), desk, "compact")
    if page != "docs/webhooks.md":
        return {}
    secret, now = "whsec_" + "a" * 32, datetime.now(UTC)
    body = json.dumps({"type": "webhook.test", "timestamp": now.isoformat(), "data": {"endpoint_id": "whe_1"}})
    signature = Webhook(secret).sign("msg_1", now, body)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    return {"secret": secret, "body": body.encode(), "headers": headers}


def _ids(block: Block, lathe: Lathe, receiver: Receiver) -> dict[str, str]:
    """The ids that a page has its reader put in."""
    ids: dict[str, str] = {}
    if "$JOB" in block.text:
        ids["JOB"] = next(lathe.client.jobs.list(status=["succeeded"])).id
    if "$ENDPOINT" in block.text or "$MESSAGE" in block.text:
        ids["ENDPOINT"] = lathe.client.webhook_endpoints.create(receiver.url).id
        ids["MESSAGE"] = lathe.client.webhook_endpoints.test(ids["ENDPOINT"]).id
    return ids


def _type(words: list[str], lathe: Lathe) -> None:
    """One command, in this process."""
    if words[0] == "lathe":
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
        return
    assert words[:2] == ["python", "-m"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lathe.stack.programs[0].environment.items():
            patch.setenv(name, value)
        main = importlib.import_module(words[2]).main
        known = 1 if "NAME" in words else 0  # a host of that name is not there, which it says
        assert (main(words[3:]) if words[3:] else main()) == known
