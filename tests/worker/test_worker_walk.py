"""One job through a real relay, broker and worker."""

import json
from typing import Any

import pytest
from fixtures.keys import Keys
from fixtures.waiting import until
from standardwebhooks import Webhook
from worker_service import Service

from optcore.manifest import SIGNATURE
from optcore.signing import verify_signature
from optcore.verify import verify

pytestmark = pytest.mark.integration


def test_a_worker_with_a_key_signs_what_the_engine_made_and_tells_it_nothing(service: Service, keys: Keys) -> None:
    service.settings["SIGNING_KEY"] = keys.private
    service.start_relay()
    service.start_worker()
    job_id = service.submit(wishes={"verifiable": "yes"})
    service.await_status(job_id, "succeeded")
    folder = service.output(job_id)
    assert verify(folder) == verify_signature(folder, keys.public) == ()
    registered = service.rows("SELECT bytes FROM artifacts WHERE path = 'model.sig'")
    assert [tuple(row) for row in registered] == [((folder / SIGNATURE).stat().st_size,)]
    environment = json.loads((folder / "environment.json").read_text())
    assert not [name for name in environment if "SIGNING" in name]


def test_a_job_succeeds_and_its_receiver_is_told(service: Service, receiver: Any) -> None:
    secret = service.add_receiver(receiver.url)
    service.start_relay()
    service.start_worker()
    job_id = service.submit()
    job = service.await_status(job_id, "succeeded")

    assert job.attempt == 1
    assert job.artifact_digest == json.loads((service.output(job_id) / "manifest.json").read_text())["digest"]
    history = service.events(job_id)
    assert [event.seq for event in history] == list(range(1, len(history) + 1))
    assert history[0].type == "job.queued"
    assert history[-1].type == "job.succeeded"
    paths = [path for (path,) in service.rows("SELECT path FROM artifacts ORDER BY path")]
    assert paths == ["config.json", "environment.json", "manifest.json", "sub/a.txt"]
    stages = service.rows("SELECT name, status FROM stages ORDER BY position")
    assert [tuple(row) for row in stages] == [(name, "succeeded") for name in ("0-load", "1-ptq", "2-export")]

    until(lambda: service.rows("SELECT 1 FROM webhook_messages WHERE status = 'delivered'"), "the delivery")
    headers, body = receiver.requests[0]
    payload = Webhook(secret).verify(body, headers)
    assert payload["type"] == "job.succeeded"
    assert payload["data"]["job_id"] == job_id
    assert len(receiver.requests) == 1


def test_a_job_runs_though_nobody_knows_what_stages_took(service: Service) -> None:
    service.rows("ALTER TABLE stage_costs RENAME TO stage_costs_away")
    service.start_relay()
    service.start_worker()
    service.await_status(service.submit(), "succeeded")
