"""`python -m demo`: one real job through the whole service on this machine, from recipe to generated text.

Everything is the real thing: PostgreSQL, Valkey, the API, the relay, the workers, the engine. Only the Hub is a local
peer (`demo.hub`), so nothing leaves the machine.
"""

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

from demo.generate import generate_side_by_side
from demo.hub_process import HubProcess
from demo.watch import watch
from lathe import Client
from lathe.local.stack import Stack
from lathe.models import Job
from optcore.recipe import load_recipe
from optcore.references import Publish
from optcore.report import Report
from optcore.report.text import render_table

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "docs" / "recipes" / "demo.yaml"
CREDENTIAL = "default"


def main() -> int:
    """Exit status 0 only when the job succeeded, was published, and its checkpoint was loaded and generated text."""
    options = _options()
    started = time.monotonic()
    folder = _fresh_folder(options.data)
    with HubProcess(folder / "hub") as hub, Stack(folder / "service", environment=_environment(hub), say=_say) as stack:
        _say(f"the service is up after {time.monotonic() - started:.0f} s; dashboard: {_sign_in(stack)}")
        with Client(stack.url, stack.api_key) as client:
            client.credentials.put(CREDENTIAL, hub.token)
            job = _run_job(client)
            result = folder / "result"
            client.artifacts.download(job.id, result)
        _show_publication(job, hub)
        generate_side_by_side(ROOT / "models" / "stdlib-5m", result)
        _say(f"done in {time.monotonic() - started:.0f} s; the checkpoint is in {result}")
        _say(f"dashboard: {_sign_in(stack)}")
        _linger(options.stay)
    return 0


def _run_job(client: Client) -> Job:
    """Submit, watch, and show the before/after table."""
    recipe = load_recipe(RECIPE)
    model = recipe.model.model_copy(update={"path": str(ROOT / str(recipe.model.path))})
    publish = Publish(repo_id="demo/stdlib-5m-nvfp4", credential=CREDENTIAL)
    job = client.jobs.create(recipe.model_copy(update={"model": model, "publish": publish}))
    _say(f"submitted {job.id}: {recipe.name}")
    job = watch(client, job.id)
    if job.status != "succeeded":
        raise SystemExit(f"the job {job.status}: {job.failure}")
    print("\n" + render_table(Report.model_validate(client.jobs.report(job.id))))
    return job


def _show_publication(job: Job, hub: HubProcess) -> None:
    if job.publish.status != "published":
        raise SystemExit(f"the job was not published: {job.publish}")
    _say(f"published to {job.publish.url} at commit {job.publish.commit}")


def _environment(hub: HubProcess) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "LATHE_MODEL_ROOTS": str(ROOT / "models")}


def _sign_in(stack: Stack) -> str:
    return f"{stack.url}/sign-in#key={stack.api_key}"


def _fresh_folder(folder: Path) -> Path:
    """The demo starts from nothing each time; it only ever removes the folder that it made."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _linger(stay: bool) -> None:
    """With a person at the terminal the dashboard stays up until they stop it."""
    if not stay:
        return
    _say("press Ctrl-C to stop")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


def _say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / ".lathe" / "demo", help="folder to work in; emptied first")
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    parser.add_argument("--stay", action=argparse.BooleanOptionalAction, default=at_terminal, help="stay up at the end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
