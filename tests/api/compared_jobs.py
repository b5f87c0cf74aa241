"""Finished jobs with reports that say what a test wants them to say."""

import hashlib
from typing import Any

from api import lifecycle
from api.lifecycle import ArtifactFile
from api.settings import Settings
from api.store.session import Sessions
from optcore.recipe import recipe_from
from optcore.report import Measurement, Report

HARDWARE = "x86_64, 16 CPU cores, 1 x NVIDIA H200"


def report(**changes: Any) -> Report:
    """What was measured of a small result; `size`, `kl` and `speed` are the three that a front is made of."""
    size, kl, speed = changes.pop("size", 5e9), changes.pop("kl", 0.03), changes.pop("speed", 90.0)
    rows = (
        _row("weight_bytes", "Weights on disk", "bytes", 16e9, size, "lower"),
        _row("mean_kl", "KL to the source", "nats/token", None, kl, "lower"),
        _row("decode_speed", "Decode in transformers", "tokens/s", 60, speed, "higher"),
    )
    facts: dict[str, Any] = {
        "model": "org/model",
        "source_digest": "a" * 64,
        "artifact_digest": "d" * 64,
        "data_digest": "e" * 64,
        "scheme": "NVFP4 W4A4, blocks of 16",
        "recipe": {},
        "measurements": rows,
        "environment": {"hardware": HARDWARE, "torch": "2.13.0"},
    }
    return Report(**facts | changes)


def finished(
    sessions: Sessions, settings: Settings, document: dict[str, Any], text: str | bytes, project_id: str = "acme"
) -> str:
    """A job that succeeded, with `text` as its report.json; its id."""
    content = text.encode() if isinstance(text, str) else text
    with sessions.begin() as session:
        job_id = lifecycle.submit(session, project_id, recipe_from(document)).id
        claim = lifecycle.claim(session, job_id, "worker-1")
        assert claim is not None
        folder = settings.artifacts_dir / job_id / str(claim.epoch)
        folder.mkdir(parents=True)
        (folder / "report.json").write_bytes(content)
        file = ArtifactFile("report.json", len(content), hashlib.sha256(content).hexdigest())
        lifecycle.finish(session, claim, "d" * 64, [file])
    return job_id


def _row(name: str, title: str, unit: str, source: float | None, result: float | None, better: Any) -> Measurement:
    return Measurement(name=name, title=title, unit=unit, source=source, result=result, better=better)
