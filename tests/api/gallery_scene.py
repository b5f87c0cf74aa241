"""A made-up service with something on every page, for the pictures in the documentation."""

from pathlib import Path
from typing import Any

import compared_jobs
import job_scenes
from dashboard_service import Service
from job_scenes import GATED, OWNER
from sqlalchemy import text

from api import lifecycle
from api.store import credentials, keys, webhook_deliveries, webhook_messages, webhooks, workers
from api.store.webhook_deliveries import Outcome
from api.store.workers import Capacity
from optcore.events import MEMORY, Metric
from optcore.recipe import recipe_from
from optcore.report import Measurement, Report

H200 = Capacity("alder", "cuda", 8, "NVIDIA H200", 141 * 10**9, host_memory_bytes=2 * 10**12, cores=192)
LARGE = {**GATED, "model": {"id": "Qwen/Qwen3-8B"}, "metadata": {"team": "serving"}}
DRAFT = """\
name: stdlib int4
model: {id: me/stdlib-5m}
calibration:
  dataset: python-stdlib
  samples: 64
  sequence_length: 512
chain:
  - {technique: ptq, scheme: int4}
target: {format: gguf}
evaluate:
  - {evaluator: fidelity}
  - {evaluator: throughput}
"""
"""Of a model that the service's Hub has."""


def furnish(service: Service) -> dict[str, str]:
    """Make it all; the address of each page, by the name of its picture."""
    compared = [_compared(service, *each) for each in _CANDIDATES]
    broken = job_scenes.failed(service, recipe_from({**LARGE, "name": "qwen3-8b nvfp4, long context"}))
    done = job_scenes.succeeded(service, _measured())
    endpoint = _endpoint(service, done, broken)
    live = _watched(service)
    _unfinished(service)
    _machines(service)
    with service.sessions.begin() as session:
        credentials.put(session, service.settings.vault, OWNER, "hub-main", "hf_made_up")
        keys.create(session, OWNER, name="nightly builds")
        session.execute(
            text(
                "update jobs set started_at = finished_at - interval '14 minutes', run_seconds = 840 "
                "where recipe->>'name' like '%8b%'"
            )
        )
    pick = "&".join(f"job={job_id}" for job_id in compared)
    return {
        "jobs": "/",
        "new": "/new",
        "job-running": f"/jobs/{live}",
        "job-finished": f"/jobs/{done}",
        "job-failed": f"/jobs/{broken}",
        "job-plots": f"/jobs/{live}/plots",
        "job-logs": f"/jobs/{live}/logs",
        "job-recipe": f"/jobs/{done}/recipe",
        "job-deliveries": f"/jobs/{done}/deliveries",
        "compare": f"/compare?{pick}",
        "workers": "/workers",
        "settings": "/settings",
        "settings-keys": "/settings/keys",
        "settings-credentials": "/settings/credentials",
        "settings-webhooks": "/settings/webhooks",
        "settings-endpoint": f"/settings/webhooks/{endpoint}",
    }


_CANDIDATES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("qwen3-8b nvfp4", "nvfp4", {}),
    ("qwen3-8b fp8", "fp8", {"size": 8.6e9, "kl": 0.004, "speed": 104.0, "scheme": "FP8 W8A8"}),
    ("qwen3-8b int8", "int8", {"size": 8.9e9, "kl": 0.011, "speed": 71.0, "scheme": "INT8 W8A8"}),
)


def _compared(service: Service, name: str, scheme: str, changes: dict[str, Any]) -> str:
    asked = {**LARGE, "name": name, "chain": [{"technique": "ptq", "scheme": scheme}]}
    written = compared_jobs.report(model="Qwen/Qwen3-8B", **changes).to_json()
    return compared_jobs.finished(service.sessions, service.settings, asked, written)


def _watched(service: Service) -> str:
    """A job under way, with all that its engine says while it works."""
    claim = job_scenes.running(service, recipe_from({**GATED, "name": "qwen3-0.6b nvfp4, 400 steps"}))
    error = {"stage": "1-ptq-fallback1", "name": "reconstruction_error"}
    service.record(claim, *(Metric(value=2e-4 * 1.06**layer, step=layer, **error) for layer in range(28)))
    held = {"stage": "2-qad", "name": MEMORY}
    grown = (2.1e9 * (1 - 0.7 ** (second / 4)) + 4e7 * (second % 3) for second in range(2, 142, 2))
    service.record(claim, *(Metric(value=value, step=2 + 2 * number, **held) for number, value in enumerate(grown)))
    return claim.job_id


def _measured() -> Report:
    def row(name: str, title: str, source: float | None, result: float, unit: str, better: Any) -> Measurement:
        return Measurement(name=name, title=title, source=source, result=result, unit=unit, better=better)

    rows = (
        row("weight_bytes", "Weights on disk", 1.192e9, 0.754e9, "bytes", "lower"),
        row("perplexity", "Perplexity", 16.4, 16.7, "", "lower"),
        row("mean_kl", "KL to the source", None, 0.0121, "nats/token", "lower"),
        row("top1", "Top-1 agreement with the source", 1, 0.957, "share", "higher"),
        row("decode", "Decode in transformers", 61.2, 88.5, "tokens/s", "higher"),
    )
    told = {"model": "Qwen/Qwen3-0.6B", "scheme": "FP8 W8A8", "measurements": rows}
    return job_scenes.report().model_copy(update=told)


def _endpoint(service: Service, done: str, broken: str) -> str:
    """A receiver that heard of one job and not yet of another."""
    vault = service.settings.vault
    with service.sessions.begin() as session:
        url, events = "https://hooks.example.com/lathe", ["job.succeeded", "job.failed"]
        endpoint, _ = webhooks.create_endpoint(session, vault, OWNER, url, events, "the release pipeline")
        webhooks.create_endpoint(session, vault, OWNER, "https://chat.example.com/hooks/7", ["job.failed"])
        heard = webhook_messages.add(session, endpoint.id, "job.succeeded", {}, done).id
        missed = webhook_messages.add(session, endpoint.id, "job.failed", {}, broken).id
    for message_id, outcome in (
        (heard, Outcome(True, 0.18, status_code=204)),
        (missed, Outcome(False, 5.0, error="no answer in 5 s")),
    ):
        with service.sessions.begin() as session:
            outgoing = webhook_deliveries.begin(session, vault, message_id)
            assert outgoing is not None
            webhook_deliveries.end(session, outgoing, outcome, dead_limit=9)
    return endpoint.id


def _unfinished(service: Service) -> None:
    service.submit(OWNER, recipe_from({**LARGE, "name": "qwen3-8b int4 for phones"}))
    cancelled = service.submit(OWNER, recipe_from({**GATED, "name": "wrong calibration"}))
    paused = service.submit(OWNER, recipe_from({**LARGE, "name": "waits for the night"}))
    with service.sessions.begin() as session:
        lifecycle.request_cancel(session, OWNER, cancelled)
        lifecycle.request_pause(session, OWNER, paused)


def _machines(service: Service) -> None:
    with service.sessions.begin() as session:
        workers.beat(session, "worker-1", H200, disk_free_bytes=5 * 10**12)
        idle = Capacity("birch", "cuda", 1, "NVIDIA L40S", 48 * 10**9, host_memory_bytes=256 * 10**9, cores=32)
        workers.beat(session, "birch:7:c4", idle, disk_free_bytes=9 * 10**11)
        full = Capacity("cedar", "cpu", host_memory_bytes=64 * 10**9, cores=16)
        workers.beat(session, "cedar:9:d5", full, unfit="1.2 GB free below LATHE_DATA_DIR, 5 GB are wanted")


def hub_model() -> Path:
    """What the draft's model is."""
    return Path(__file__).parents[2] / "models" / "stdlib-5m"
