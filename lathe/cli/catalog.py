"""Commands about what a service offers, and who works for it."""

from typing import Annotated

import typer
import yaml

from lathe.cli.output import console, print_each, print_json, print_table
from lathe.cli.recipe_file import ModelName, with_model
from lathe.cli.session import AsJson, complete_templates, connect
from lathe.errors import LatheError
from lathe.models import WorkerInfo
from optcore.report.numbers import format_bytes


def techniques(as_json: AsJson = False) -> None:
    """List what a recipe's chain may name."""
    with connect() as client:
        found = client.techniques()
    if as_json:
        print_each(found)
    else:
        print_table(("technique", "what it does", "paper"), [(item.name, item.title, item.paper) for item in found])


def formats(as_json: AsJson = False) -> None:
    """List number formats, and which targets hold them."""
    with connect() as client:
        found = client.formats()
    if as_json:
        print_each(found)
    else:
        rows = [(item.name, item.kind, item.title, ", ".join(item.targets)) for item in found]
        print_table(("format", "for", "what it is", "targets"), rows)


def templates(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Print this one as a recipe.", autocompletion=complete_templates),
    ] = None,
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """List recipes to start from, or print one: `lathe templates fit-on-8-gb --model org/name | lathe submit -`."""
    if model is not None and name is None:
        raise LatheError("--model is for one template, and none is named", remedy="`lathe templates` lists them")
    with connect() as client:
        found = client.templates()
    if name is not None:
        found = [item for item in found if item.name == name]
        if not found:
            raise LatheError(f"no template {name!r}", remedy="`lathe templates` lists them")
    found = [item.model_copy(update={"recipe": with_model(item.recipe, model)}) for item in found]
    if as_json:
        print_each(found)
    elif name is not None:
        console.out(yaml.safe_dump(found[0].recipe, sort_keys=False).rstrip("\n"), highlight=False)
    else:
        print_table(("template", "what it is for", ""), [(item.name, item.title, item.description) for item in found])


def workers(as_json: AsJson = False) -> None:
    """List the machines that run engines, and what they do."""
    with connect() as client:
        found = client.workers()
    if as_json:
        print_each(found)
    else:
        header = ("worker", "host", "status", "device", "memory", "disk free", "job", "")
        print_table(header, map(_worker, found))


def health(as_json: AsJson = False) -> None:
    """Say whether the service can take work. Exit with 1 when it cannot."""
    with connect() as client:
        found = client.health()
    if as_json:
        print_json(found)
    else:
        console.out(found.status, highlight=False)


def _worker(item: WorkerInfo) -> tuple[object, ...]:
    gpus = f"{item.gpus} x {item.gpu_kind or 'GPU'}" if item.gpus else ""
    memory = item.gpu_memory_bytes if item.gpus else item.host_memory_bytes
    return (
        *(item.id, item.host, item.status, gpus or item.device or ""),
        *(format_bytes(size) if size is not None else "" for size in (memory, item.disk_free_bytes)),
        *(item.job_id or "", item.reason),
    )
