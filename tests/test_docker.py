"""Images and compose file: linted, and held against the code they package. No container engine is needed."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from api.tracing import ENDPOINTS
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COPIED = re.compile(r"^COPY (?!--from)(.+) \S+$", re.M)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load(COMPOSE)
    assert isinstance(loaded, dict)
    return loaded


def sources(dockerfile: Path) -> list[str]:
    return [name for line in COPIED.findall(dockerfile.read_text(encoding="utf-8")) for name in line.split()]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_the_linter_is_content(dockerfile: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_images_copy_what_is_there_and_what_the_context_holds(dockerfile: Path) -> None:
    names = sources(dockerfile)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert {name.removeprefix("./") for name in names} <= kept


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_images_run_as_nobody_special_and_say_how_they_are(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8")
    assert re.findall(r"^USER (.+)$", text, re.M)[-1] == "10001:10001"
    assert len(re.findall(r"^HEALTHCHECK ", text, re.M)) == 1


def _extras(dockerfile: Path) -> set[str]:
    (listed,) = re.findall(r'"\.\[(.*)\]"', dockerfile.read_text(encoding="utf-8"))
    return set(listed.split(","))


def test_the_api_image_holds_no_torch() -> None:
    assert _extras(ROOT / "docker" / "api.Dockerfile") == {"worker", "traces"}


def test_traces_can_be_turned_on_in_containers(compose: dict[str, Any]) -> None:
    assert all("traces" in _extras(dockerfile) for dockerfile in DOCKERFILES)
    for service in compose["services"].values():
        if service["image"].startswith("lathe-"):
            assert {ENDPOINTS[0], "OTEL_EXPORTER_OTLP_HEADERS"} <= set(service["environment"])


def test_compose_follows_the_specification(compose: dict[str, Any]) -> None:
    schema = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    jsonschema.validate(compose, json.loads(schema.read_text(encoding="utf-8")))


def test_nothing_secret_has_a_default() -> None:
    secrets = re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|TOKEN|KEY)\w*)(.{0,2})", COMPOSE)
    assert {name for name, _ in secrets} == {"POSTGRES_PASSWORD", "VALKEY_PASSWORD", "LATHE_SECRET_KEY"}
    assert {operator for _, operator in secrets} == {":?"}
    example = (ROOT / "docker" / "env.example").read_text(encoding="utf-8")
    assert {line for line in example.splitlines() if line and line[0] != "#"} == {f"{name}=" for name, _ in secrets}


def test_no_secret_is_an_argument_of_a_command(compose: dict[str, Any]) -> None:
    commands = [json.dumps(service.get(key, "")) for service in compose["services"].values() for key in ("command",)]
    assert not [command for command in commands if "PASSWORD" in command or "SECRET" in command]


def test_compose_sets_what_the_settings_know(compose: dict[str, Any]) -> None:
    known = {f"LATHE_{name.upper()}" for name in WorkerSettings.model_fields}
    needed = {f"LATHE_{name.upper()}" for name, field in WorkerSettings.model_fields.items() if field.is_required()}
    ours = [service for service in compose["services"].values() if service["image"].startswith("lathe-")]
    assert len(ours) == 5
    for service in ours:
        names = {name for name in service["environment"] if name.startswith("LATHE_")}
        assert needed <= names <= known


def test_what_money_is_reckoned_by_can_be_set_in_containers(compose: dict[str, Any]) -> None:
    assert {"LATHE_PRICES", "LATHE_CURRENCY"} <= set(compose["services"]["api"]["environment"])


def test_every_service_is_pinned_and_watched(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        image = service["image"]
        assert re.fullmatch(r"lathe-(api|worker)|[\w./]+:\d[\w.-]*", image), image
        for needed in service.get("depends_on", {}):
            assert needed in compose["services"]
        if not image.startswith("lathe-"):
            assert "healthcheck" in service, name


def test_our_containers_cannot_gain_rights(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        if service["image"].startswith("lathe-"):
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
