"""What users import: pinned, lazy, and the same for both clients."""

import inspect
import subprocess
import sys

import lathe
from lathe import async_client, client

PUBLIC = """
APIError Artifact AsyncClient BadRequest BadResponse Client Conflict ConnectionFailed Credential DigestMismatch
DownloadError Failure Forbidden FormatInfo Health Job JobCancelled JobEvent JobFailed JobNotSucceeded LatheError
NotFound PayloadTooLarge Problem Recipe RecipeError RecipeRefused RequestInProgress ServerError Stage TechniqueInfo
TooManyRequests Unauthorized Unprocessable UnsafePath WaitTimeout WebhookDelivery WebhookEndpoint
WebhookMessage WebhookPayload WebhookVerificationError load_recipe parse_recipe unwrap verify_signature
"""


def test_the_public_names_are_these_and_each_leads_somewhere() -> None:
    assert lathe.__all__ == sorted(lathe.__all__) == PUBLIC.split()
    assert all(getattr(lathe, name).__name__.endswith(name) for name in lathe.__all__)


def test_importing_the_package_loads_nothing_else() -> None:
    script = "import sys, lathe; print({'httpx', 'pydantic', 'torch', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    for name in ("Jobs", "Artifacts", "WebhookEndpoints", "WebhookMessages", "Credentials", "Keys", "Client"):
        one, other = getattr(client, name), getattr(async_client, f"Async{name}")
        methods = _public_methods(one)
        assert methods == _public_methods(other)
        for method in methods:
            ours, theirs = inspect.signature(getattr(one, method)), inspect.signature(getattr(other, method))
            assert list(ours.parameters) == list(theirs.parameters), f"{name}.{method}"
            assert [p.default for p in ours.parameters.values()] == [p.default for p in theirs.parameters.values()]


def _public_methods(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")}


def test_every_error_of_the_tree_is_drawn_in_it() -> None:
    from lathe import errors

    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert all(f" {name} " in f"{errors.__doc__} ".replace("\n", " ") for name in kinds)
