"""What users import: pinned, lazy, and the same for both clients."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lathe

LATHE = Path(lathe.__file__).parent
SPELLINGS = (
    (r"await asyncio\.to_thread\((\S+?)\)", r"\1()"),
    (r"asyncio\.sleep", "time.sleep"),
    (r"\b(async|await) ", ""),
    (r"\bAsync([A-Z])", r"\1"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\ba(iter_|close\b)", r"\1"),
)

PUBLIC = """
APIError ApiKey Artifact AsyncClient AsyncJob AuditEntry BadRequest BadResponse Client Comparison Conflict
ConnectionFailed Credential DigestMismatch DownloadError Estimate Failure Forbidden FormatInfo Health Job JobCancelled
JobEvent JobFailed JobNotSucceeded LatheError LogChunk Measurements MetricCurve NotFound PayloadTooLarge Problem
Project Recipe RecipeError RecipeRefused Report RequestInProgress ServerError Stage TechniqueInfo Template
TooManyRequests Unauthorized Unprocessable UnsafePath WaitTimeout WebhookDelivery WebhookEndpoint WebhookMessage
WebhookPayload WebhookVerificationError WorkerInfo load_recipe parse_recipe unwrap verify_signature
"""


def test_the_public_names_are_these_and_each_leads_somewhere() -> None:
    assert lathe.__all__ == sorted(lathe.__all__) == PUBLIC.split()
    assert all(getattr(lathe, name).__name__.endswith(name) for name in lathe.__all__)


def test_importing_the_package_loads_nothing_else() -> None:
    script = "import sys, lathe; print({'httpx', 'pydantic', 'torch', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_command_line_loads_no_http_client_before_it_needs_one() -> None:
    script = "import sys, lathe.cli; print({'httpx', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["_jobs", "_artifacts", "_access", "_webhooks", "job", "client"])
def test_the_async_modules_are_the_sync_ones_with_await(name: str) -> None:
    twin = f"_async{name}" if name.startswith("_") else f"async_{name}"
    ours, theirs = (_classes((LATHE / f"{each}.py").read_text()) for each in (name, twin))
    assert ours == theirs


def _classes(source: str) -> list[str]:
    """The classes as sync code: what only `await` and the names of what is awaited tell apart is spelled alike."""
    for pattern, plain in SPELLINGS:
        source = re.sub(pattern, plain, source)
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for node in classes:
        node.body = node.body[1:] if ast.get_docstring(node) else node.body
    return [ast.unparse(_Plain().visit(node)) for node in classes]


class _Plain(ast.NodeTransformer):
    """What has no async form is written out: `yield from`, and a `with` of both kinds."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if not isinstance(node.value, ast.YieldFrom):
            return node
        event = ast.Name("event")
        return ast.For(event, node.value.value, [ast.Expr(ast.Yield(event))], [], lineno=0)

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        first, *more = node.items
        return ast.With([first], [ast.With(more, node.body, lineno=0)] if more else node.body, lineno=0)


def test_every_error_of_the_tree_is_drawn_in_it() -> None:
    from lathe import errors

    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert all(f" {name} " in f"{errors.__doc__} ".replace("\n", " ") for name in kinds)
