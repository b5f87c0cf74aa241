"""Every block of code in the documentation: recipes and documents parse, commands and their options exist.

What can run here is run against a service by `test_docs_live.py`; what cannot says why in a comment before it.
"""

import ast
import configparser
import importlib
import json
import re
import shlex
import subprocess
from importlib.util import find_spec
from typing import Any

import pytest
import typer
import yaml
from fixtures.doc_blocks import ROOT, Block, blocks, blocks_of, pages
from typer.exceptions import TyperException

import dev
from lathe.cli import app
from lathe.webhook_models import WebhookPayload
from optcore.plan import check
from optcore.recipe import recipe_from

NOT_RUN = {
    "docs/observability.md: for Prometheus",
    "docs/observability.md: the values are yours",
    "docs/operations.md: downloads every package",
    "docs/operations.md: no container engine here",
    "docs/operations.md: tests/worker/test_worker_backup.py runs it",
    "docs/quickstart.md: asks for a token, and publishes to the Hub",
    "docs/quickstart.md: runs until it is stopped; the tests start the same service",
    "docs/quickstart.md: the values are yours",
}
BASE: dict[str, Any] = {"model": {"path": "m"}, "chain": [{"technique": "ptq", "scheme": "fp8"}]}
"""What a part of a recipe is tried in."""
PARSED = {"yaml", "json", "ini", "python", "shell"}
SEEN = {"", "text"}
EVERY = [block for block in blocks() if block.language not in SEEN]


def test_every_block_is_of_a_language_that_is_tried() -> None:
    assert {block.language for block in blocks()} <= PARSED | SEEN
    assert len(EVERY) > 40


def test_what_is_not_run_is_known() -> None:
    assert {f"{block.page}: {block.reason}" for block in EVERY if block.reason} == NOT_RUN


def test_no_fence_is_overlooked() -> None:
    for page in pages():
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.M)
        assert len(fences) == 2 * len(blocks_of(page)), page


@pytest.mark.parametrize("block", EVERY, ids=lambda block: block.name)
def test_a_block_means_something(block: Block) -> None:
    {"yaml": _recipe, "json": _json, "ini": _ini, "python": _python, "shell": _shell}[block.language](block)


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in (
        "lathe levitate",
        "lathe submit r.yaml --wacth",
        "python3 dev.py dosc",
        "python -m api.keyz",
        "tracert x",
    ):
        with pytest.raises((TyperException, AssertionError)):
            _command(line)
    with pytest.raises(AssertionError):
        _ini(Block("page", 1, "ini", "[Service]\n", ""))


def _recipe(block: Block) -> None:
    """A whole recipe, or a part of one; in both cases one that the engine would take. What is for others is YAML."""
    document = yaml.safe_load(block.text)
    assert isinstance(document, dict)
    if not block.reason:
        check(recipe_from(document if "model" in document else BASE | document))


def _json(block: Block) -> None:
    document = json.loads(block.text)
    if "timestamp" in document:
        WebhookPayload.model_validate(document)


def _ini(block: Block) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(block.text)
    assert all(parser[section] for section in parser.sections())


def _python(block: Block) -> None:
    """Imports of ours find what they name; the whole runs in `test_docs_live.py`."""
    for node in ast.walk(ast.parse(block.text, block.name)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("lathe", "optcore"):
            home = importlib.import_module(node.module or "")
            assert [name.name for name in node.names if not hasattr(home, name.name)] == []


def _shell(block: Block) -> None:
    subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)
    for line in block.lines:
        if not block.reason:
            _command(line)


def _command(line: str) -> None:
    words = shlex.split(line.split(">")[0])
    words = words[next(index for index, word in enumerate([*words, "end"]) if "=" not in word) :]  # assignments
    match words:
        case []:
            pass
        case ["lathe", *rest]:
            _parse(typer.main.get_command(app), rest)
        case ["python3", "dev.py", target, *_]:
            assert target in dev.TARGETS
        case ["python" | "python3", "-m", module, *_]:
            assert find_spec(module), module
        case ["python", script, *_]:
            assert (ROOT / script).exists()
        case ["curl", *_]:
            pass
        case _:
            raise AssertionError(f"nobody knows whether this runs: {line}")


def _parse(command: Any, words: list[str]) -> None:
    """Raises `TyperException` for a command, an argument or an option that is not there."""
    context = None
    while True:
        context = command.make_context(command.name or "lathe", list(words), parent=context)
        if not getattr(command, "commands", None):
            return
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
