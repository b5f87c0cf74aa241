"""A worker beside engines that hang, eat memory or lose their GPU, and on a machine that is not fit for work."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.waiting import until
from worker_service import Hold, Service, is_running

pytestmark = pytest.mark.integration

CARD = "GPU-11111111-2222-3333-4444-555555555555"


def _failures(service: Service) -> list[dict[str, object]]:
    return [failure for (failure,) in service.rows("SELECT failure FROM attempts ORDER BY started_at")]


def _driver(service: Service, uncorrectable: str = "0") -> None:
    """Put an `nvidia-smi` of ours before all others: it answers as the real one does, for one card."""
    folder = service.folder / "bin"
    folder.mkdir(exist_ok=True)
    answer = folder / "nvidia-smi.new"
    answer.write_text(f"#!/bin/sh\necho '{CARD}, NVIDIA H200, 143771, {uncorrectable}'\n")
    answer.chmod(0o755)
    answer.rename(folder / "nvidia-smi")
    service.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    service.environ["CUDA_VISIBLE_DEVICES"] = "0"
    service.settings["GPU_LOCK_DIR"] = service.folder / "locks"


def test_an_engine_that_falls_silent_is_killed_and_says_where_it_was(service: Service) -> None:
    service.settings |= {"STALL_SECONDS": '{"loading": 1.5}', "STACK_DUMP_SECONDS": 1}
    service.start_worker()
    job_id = service.submit(wishes={"hang": "yes", "grandchild": service.folder / "grandchild"})
    until(lambda: service.job(job_id).losses == 1, "the attempt to be given up")
    [failure] = _failures(service)[:1]
    assert (failure["code"], failure["kind"], failure["stage"]) == ("engine_stalled", "infrastructure", "1-ptq")
    assert "while loading" in str(failure["message"])
    assert "in hang_in_a_collective" in str(failure["message"])
    assert not is_running(int((service.folder / "grandchild").read_text()))
    [(log,)] = service.rows("SELECT string_agg(text, '') FROM log_chunks WHERE epoch = 1")
    assert "in hang_in_a_collective" in log


def test_memory_beyond_the_limit_ends_the_job_and_not_the_worker(service: Service) -> None:
    service.settings["ENGINE_MEMORY_BYTES"] = 2**30
    service.start_worker()
    job = service.await_status(service.submit(wishes={"eat": 2**31}), "failed")
    assert job.failure is not None
    assert job.attempt == 1, "the same would happen again"
    assert (job.failure["kind"], job.failure["retryable"]) == ("out_of_memory", False)
    assert "limit 1.00 GiB" in job.failure["message"]
    service.await_status(service.submit(seed=1), "succeeded")


def test_an_engine_that_cannot_have_its_gpu_costs_its_job_nothing(service: Service) -> None:
    service.start_worker()
    job_id = service.submit(wishes={"crash": 75})
    until(lambda: any(_failures(service)), "the first attempt")
    job = service.job(job_id)
    assert (job.status, job.losses) == ("queued", 0)
    assert service.rows("SELECT state FROM attempts") == [("released",)]
    assert _failures(service)[0]["code"] == "gpu_busy"


def test_a_gpu_that_an_orphan_holds_gets_no_second_job(service: Service) -> None:
    _driver(service)
    hold = Hold.at(service.folder)
    lock = service.folder / "locks" / f"{CARD}.lock"
    lock.parent.mkdir()
    with lock.open("w") as orphan:
        fcntl.flock(orphan, fcntl.LOCK_EX)
        service.start_worker()
        job_id = service.submit(wishes={"hold": hold.path})
        until(lambda: f"another engine holds {CARD}" in service.log("worker"), "the worker to see it")
        assert service.job(job_id).epoch == 0
    hold.engine_pid()
    with lock.open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert service.rows("SELECT gpus FROM attempts") == [(1,)]
    hold.release()
    service.await_status(job_id, "succeeded")


def test_a_gpu_with_memory_errors_gets_no_job_until_it_is_well(service: Service) -> None:
    _driver(service, uncorrectable="2")
    service.start_worker()
    job_id = service.submit()
    until(lambda: "2 uncorrectable memory errors" in service.log("worker"), "the worker to look")
    [(unfit,)] = until(lambda: service.rows("SELECT unfit FROM workers WHERE unfit IS NOT NULL"), "its row")
    assert unfit == f"GPU {CARD}: 2 uncorrectable memory errors"
    assert service.job(job_id).epoch == 0
    _driver(service)
    service.await_status(job_id, "succeeded")


def test_a_worker_with_a_full_disk_leaves_the_job_to_another(service: Service) -> None:
    service.settings["MIN_FREE_BYTES"] = 2**60
    service.start_worker("full")
    job_id = service.submit()
    until(lambda: "what is queued stays so" in service.log("full"), "the worker to look at the queue")
    assert "bytes free below LATHE_DATA_DIR" in service.log("full")
    assert service.job(job_id).epoch == 0
    del service.settings["MIN_FREE_BYTES"]
    service.start_worker()
    service.await_status(job_id, "succeeded")


def test_a_host_that_loses_job_after_job_waits_for_its_operator(service: Service) -> None:
    service.start_worker()
    bad = [service.submit(wishes={"crash": 1}, seed=seed) for seed in range(3)]
    until(lambda: len([f for f in _failures(service) if f]) >= 3, "three losses")
    [(host,)] = service.rows("SELECT name FROM hosts WHERE quarantined_at IS NOT NULL")
    for job_id in bad:
        service.cancel(job_id)
    good = service.submit(seed=9)
    claims = service.log("worker").count("begins")
    until(lambda: service.log("worker").count("nothing to claim") >= 2, "the worker to look for work")
    assert (service.job(good).epoch, service.log("worker").count("begins")) == (0, claims)
    assert f"{host}  in quarantine since" in _hosts(service, "list")
    assert _hosts(service, "trust", host) == f"{host} is trusted again\n"
    service.await_status(good, "succeeded")
    assert _hosts(service, "list") == ""


def _hosts(service: Service, *words: str) -> str:
    command = [sys.executable, "-m", "api.hosts", *words]
    return subprocess.run(command, env=service.environment(), capture_output=True, text=True, check=True).stdout


def test_the_engine_lives_in_folders_of_its_own(service: Service) -> None:
    service.start_worker()
    job_id = service.submit()
    service.await_status(job_id, "succeeded")
    work = next((service.data_dir / "work").iterdir())
    environment = (service.output(job_id) / "environment.json").read_text()
    assert f'"HOME": "{work}/home"' in environment
    assert f'"TRITON_CACHE_DIR": "{work}/cache/triton"' in environment
    assert Path(work / "home").stat().st_mode & 0o077 == 0
    assert (service.output(job_id) / "manifest.json").stat().st_mode & 0o077 == 0
