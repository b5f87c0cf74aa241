"""The house rules that a program can check: short files, short functions, one noun a file, imports without cycles."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("optcore", "lathe", "api", "worker", "migrations", "demo", "benchmarks")
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
# Written so that this file does not contain what it looks for.
BANNED = [
    (re.compile(rf"(?<![\w.])/{'work'}/\w"), "a path of one machine"),
    (re.compile(rf"/{'root'}/|/{'home'}/\w+/"), "somebody's home folder"),
    (
        re.compile(rf"{'local'}host(?!\.\w)"),
        "a name that a machine without a hosts file cannot resolve: write 127.0.0.1",
    ),
    (re.compile(rf"\b(?:{'TO'}DO|{'FIX'}ME|{'X'}XX|{'HA'}CK)\b"), "a note to oneself: an issue says it better"),
    (
        re.compile(rf"pip install (?!--no-{'index'}).{{0,20}}\blathe\b"),
        "a command that installs somebody else's package: the name on PyPI is not ours",
    ),
    (re.compile(rf"(?i)\b(?:{'chat'}gpt|{'cop'}ilot|{'clau'}de|{'large language'} model wrote)\b"), "a tool's name"),
]


def _sources() -> list[Path]:
    below = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in below if "versions" not in path.parts] + [ROOT / "dev.py"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function's place, and its lines without the docstring."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            yield f"{_name(path)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1 - docstring


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_long() -> None:
    sizes = {_name(path): _lines(path) for path in _sources()}
    filled = [lines for lines in sizes.values() if lines > 2]
    print(f"{len(filled)} files, median {median(filled):.0f} lines, longest {max(filled)}")
    assert {name: lines for name, lines in sizes.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_long() -> None:
    sizes = dict(item for path in _sources() for item in _functions(path))
    print(f"{len(sizes)} functions, median {median(sizes.values()):.0f} lines, longest {max(sizes.values())}")
    assert {name: lines for name, lines in sizes.items() if lines > LONGEST_FUNCTION} == {}


def test_the_typical_file_and_function_are_short() -> None:
    assert median(lines for path in _sources() if (lines := _lines(path)) > 2) <= 150
    assert median(lines for path in _sources() for _, lines in _functions(path)) <= 12


def test_each_file_says_what_it_is() -> None:
    silent = []
    for path in _sources():
        docstring = ast.get_docstring(_tree(path)) or ""
        if _tree(path).body and not docstring.split("\n")[0].endswith((".", ":", "`", "?")):
            silent.append(_name(path))
    assert silent == []


def test_no_error_is_swallowed() -> None:
    bare = [
        f"{_name(path)}:{node.lineno}"
        for path in _sources()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or all(isinstance(line, ast.Pass) for line in node.body))
    ]
    assert bare == []


def _text_files() -> list[Path]:
    folders = [ROOT / name for name in (*ROOMS, "tests", "docs", "docker")]
    endings = {".py", ".md", ".yaml", ".toml", ".html", ".css", ".js", ".txt", ".sh", ".Dockerfile"}
    below = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in endings]
    vendored = [path for path in below if "vendor" in path.parts]
    return [path for path in below if path not in vendored] + [path for path in ROOT.glob("*.*") if path.is_file()]


@pytest.mark.parametrize(("pattern", "what"), BANNED, ids=[what.split(":")[0] for _, what in BANNED])
def test_nothing_is_written_that_does_not_belong_here(pattern: re.Pattern[str], what: str) -> None:
    found = [
        f"{_name(path)}:{number}"
        for path in _text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], what


def _modules() -> dict[str, Path]:
    """Dotted names of our modules; a package is named by its folder."""
    named = {}
    for path in _sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def _imported(body: list[ast.stmt]) -> Iterator[str]:
    """What a module imports while it is being imported: not in functions, not for types only."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imported(node.orelse)
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With):
            yield from _imported([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


def _closest(name: str, modules: dict[str, Path]) -> str | None:
    """The module that an imported name is, or lies in."""
    while name not in modules and "." in name:
        name = name.rpartition(".")[0]
    return name if name in modules else None


def test_imports_have_no_cycle() -> None:
    modules = _modules()
    graph = {
        name: {
            found for target in _imported(_tree(path).body) if (found := _closest(target, modules)) not in (None, name)
        }
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as cycle:
        pytest.fail(f"import cycle: {' -> '.join(reversed(cycle.args[1]))}")


def test_no_import_is_relative() -> None:
    relative = [
        f"{_name(path)}:{node.lineno}"
        for path in _sources()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []
