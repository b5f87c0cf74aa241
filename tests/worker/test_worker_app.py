"""The settings that a lost or doubled message depends on, and what a worker must not import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery
from fixtures.keys import Keys
from worker_service import SECRET_KEY

from worker.broker import Broker, BrokerDown
from worker.conf import configuration
from worker.fitness import Fitness
from worker.settings import WorkerSettings

ENVIRONMENT = {
    "LATHE_DATABASE_URL": "postgresql://u:pw@127.0.0.1:9/d",
    "LATHE_REDIS_URL": "redis://:pw@127.0.0.1:9/0",
    "LATHE_DATA_DIR": "data",
    "LATHE_SECRET_KEY": SECRET_KEY,
}


def _python(script: str) -> object:
    run = subprocess.run(
        [sys.executable, "-c", script], env=dict(os.environ) | ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def test_a_worker_and_a_relay_start_without_torch_or_the_web() -> None:
    found = _python(
        "import json, sys, worker.tasks, worker.relay;"
        "names = ('torch', 'transformers', 'fastapi', 'starlette', 'api.main');"
        "print(json.dumps([name for name in names if name in sys.modules]))"
    )
    assert found == []


def test_messages_are_hints_that_are_acked_early_and_hold_ids() -> None:
    conf = _python(
        "import json, worker.tasks; from worker.app import app; from worker.conf import assert_safe;"
        "assert_safe(app); c = app.conf;"
        "names = ['task_acks_late', 'task_reject_on_worker_lost', 'task_ignore_result', 'result_backend',"
        "'accept_content', 'worker_disable_prefetch', 'worker_cancel_long_running_tasks_on_connection_loss',"
        "'task_time_limit', 'task_routes'];"
        "limits = {n: app.tasks[n].time_limit for n in ('run_job', 'publish', 'deliver_webhook')};"
        "print(json.dumps({n: c[n] for n in names} | {'limits': limits}))"
    )
    assert conf == {
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "result_backend": None,
        "accept_content": ["json"],
        "worker_disable_prefetch": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "task_time_limit": None,
        "task_routes": {
            "run_job": {"queue": "gpu"},
            "publish": {"queue": "cpu"},
            "deliver_webhook": {"queue": "cpu"},
        },
        "limits": {"run_job": None, "publish": None, "deliver_webhook": 150},
    }


def test_a_broker_that_is_away_is_a_typed_error() -> None:
    app = Celery("test", set_as_current=False)
    app.conf.update(configuration(ENVIRONMENT["LATHE_REDIS_URL"]))
    with Broker(app) as broker, pytest.raises(BrokerDown, match="refused"):
        broker.send("run_job", {"job_id": "job_1"})


@pytest.mark.parametrize("command", ['["a b", "-m", "c"]', "'a b' -m c"])
def test_the_engines_command_is_words_or_json(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LATHE_ENGINE_COMMAND", command)
    assert WorkerSettings().engine_command == ("a b", "-m", "c")  # type: ignore[call-arg]


def test_a_worker_that_could_not_sign_takes_no_job(monkeypatch: pytest.MonkeyPatch, keys: Keys, tmp_path: Path) -> None:
    for name, value in (ENVIRONMENT | {"LATHE_DATA_DIR": str(tmp_path), "LATHE_MIN_FREE_BYTES": "0"}).items():
        monkeypatch.setenv(name, value)
    assert Fitness(WorkerSettings(), ()).trouble() is None  # type: ignore[call-arg]
    for path, trouble in ((keys.private, None), (keys.public, "no key of this kind"), (tmp_path / "x", "cannot read")):
        monkeypatch.setenv("LATHE_SIGNING_KEY", str(path))
        said = Fitness(WorkerSettings(), ()).trouble()  # type: ignore[call-arg]
        assert said is None if trouble is None else "LATHE_SIGNING_KEY cannot be used: " in said and trouble in said


def test_settings_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    shown = repr(WorkerSettings())  # type: ignore[call-arg]
    assert "pw@" not in shown
    assert SECRET_KEY not in shown
