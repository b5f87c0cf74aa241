"""A real web service in a thread of the test, and a job that is driven as a worker does it."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from api import lifecycle
from api.lifecycle import ArtifactFile, Claim
from api.main import create_app
from api.settings import Settings
from api.store import keys
from api.store.session import Sessions
from optcore.events import AnyEvent
from optcore.recipe import Recipe
from optcore.report import LayerError, Measurement, Report


@dataclass
class Service:
    url: str
    settings: Settings
    sessions: Sessions

    def key(self, project_id: str) -> str:
        with self.sessions.begin() as session:
            return keys.create(session, project_id)[1]

    def submit(self, project_id: str, recipe: Recipe) -> str:
        with self.sessions.begin() as session:
            return lifecycle.submit(session, project_id, recipe).id

    def claim(self, job_id: str) -> Claim:
        with self.sessions.begin() as session:
            claim = lifecycle.claim(session, job_id, "worker-1")
        assert claim is not None
        return claim

    def record(self, claim: Claim, *events: AnyEvent) -> None:
        with self.sessions.begin() as session:
            lifecycle.record(session, claim, events)

    def finish(self, claim: Claim, report: Report, more: Sequence[str] = ()) -> None:
        folder = self.settings.artifacts_dir / claim.job_id / str(claim.epoch)
        folder.mkdir(parents=True)
        texts = {"report.json": report.to_json(), "report.html": "<h1>the report</h1>"}
        files = [_write(folder, path, text) for path, text in {**texts, **dict.fromkeys(more, "x" * 5000)}.items()]
        with self.sessions.begin() as session:
            lifecycle.finish(session, claim, "d" * 64, files)


def _write(folder: Path, path: str, text: str) -> ArtifactFile:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    (folder / path).write_bytes(content)
    return ArtifactFile(path, len(content), hashlib.sha256(content).hexdigest())


def report_of(recipe: Recipe, text: str = "") -> Report:
    """A report with a number of each kind; `text` where a model or an engine could put words."""
    return Report(
        model=f"org/model {text}",
        source_digest="a" * 64,
        artifact_digest="d" * 64,
        scheme=f"NVFP4 W4A4, blocks of 16 {text}",
        recipe=recipe.model_dump(mode="json"),
        measurements=_measurements(text),
        layer_errors=tuple(LayerError(layer=f"layer {i}", relative_error=0.01 + i * i / 2000) for i in range(8)),
        notices=(text,) if text else (),
    )


def _measurements(note: str) -> tuple[Measurement, ...]:
    smaller = {"source": 9.96e6, "result": 3.4e6}
    return (
        Measurement(name="bytes", title="Weights on disk", unit="bytes", **smaller, better="lower"),
        Measurement(name="ppl", title="Perplexity", source=12.3, baseline=13, result=12.7, better="lower", note=note),
        Measurement(name="top1", title="Same first choice", unit="share", source=1, result=0.973, better="higher"),
        Measurement(name="speed", title="Speed", unit="tokens/s", source=182, result=240.0, better="higher"),
        Measurement(name="kl", title="KL to the source", source=None, baseline=0.05, result=0.03, better="lower"),
    )


@contextmanager
def serving(settings: Settings, sessions: Sessions) -> Iterator[Service]:
    """Uvicorn on a free port until the block ends."""
    config = uvicorn.Config(
        create_app(settings), host="127.0.0.1", port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.ready.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Service(f"http://127.0.0.1:{port}", settings, sessions)
    finally:
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self.ready.set()
