"""Every operation of a service, asked for through the SDK; the same walk for both clients."""

import asyncio
import inspect
import os
import re
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.waiting import until
from live import recipe

import lathe

NOT_FOR_CLIENTS = {("GET", "/healthz"), ("GET", "/problems/{code}")}
RECEIVER = "https://93.184.216.34/hook"


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Method and path of each request that leaves a client; they go out as ever."""
    sent: list[tuple[str, str]] = []
    plain, other = httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request

    def handle(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.url.path))
        return plain(self, request)

    async def handle_async(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.url.path))
        return await other(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.HTTPTransport, "handle_request", handle)
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle_async)
        yield sent


def documented(url: str) -> set[tuple[str, str]]:
    """Operations that the running service tells of, without those that are not for clients."""
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, operations in paths.items() for method in operations} - NOT_FOR_CLIENTS


def missed(operations: set[tuple[str, str]], sent: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Operations that nothing was sent to. A more exact path is not an instance of one with a hole in its place."""
    exact = {path for _, path in operations if "{" not in path}

    def is_hit(method: str, path: str) -> bool:
        pattern = re.compile(re.sub(r"\{path\}", ".+", path).replace("{", "(?P<").replace("}", ">[^/]+)"))
        return any(
            verb == method and pattern.fullmatch(sent_path) and (sent_path == path or sent_path not in exact)
            for verb, sent_path in sent
        )

    return {(method, path) for method, path in operations if not is_hit(method, path)}


async def settled(answer: Any) -> Any:
    """What either client gives, as a value: awaited, and a list as a list."""
    if inspect.isawaitable(answer):
        return await answer
    if isinstance(answer, AsyncIterable):
        return [item async for item in answer]
    return list(answer) if isinstance(answer, Iterator) else answer


async def walk(client: Any, folder: Path, operations: set[tuple[str, str]]) -> None:
    """Ask for everything, and look at what comes."""
    await _jobs(client, folder, operations)
    await _access(client)
    await _webhooks(client)
    assert {item.name for item in await settled(client.techniques())} >= {"ptq", "prune"}
    assert "nvfp4" in {item.name for item in await settled(client.formats())}
    assert (await settled(client.health())).status == "ok"
    if ("GET", "/v1/workers") in operations:
        assert await settled(client.workers())
    if ("GET", "/v1/templates") in operations:
        assert all(item.recipe for item in await settled(client.templates()))
    if ("POST", "/v1/jobs/estimate") in operations:
        with suppress(lathe.Unprocessable):  # an empty folder is no model
            assert (await settled(client.jobs.estimate(recipe()))).object == "estimate"


async def _jobs(client: Any, folder: Path, operations: set[tuple[str, str]]) -> None:
    hold = folder / "hold"
    hold.touch()
    job = await settled(client.jobs.create(recipe(hold=str(hold))))
    until(hold.with_suffix(".pid").exists)
    hold.with_suffix(".pid").unlink()
    assert (await settled(job.pause())).status in ("pausing", "paused")
    await _until(client, job.id, "paused")
    assert (await settled(job.resume())).status == "queued"
    until(hold.with_suffix(".pid").exists)
    assert (await settled(job.cancel())).status == "cancelling"
    assert (await settled(job.wait(timeout=60))).status == "cancelled"
    hold.unlink()
    assert (await settled(job.retry())).run_number == 2
    done = await settled(job.result(timeout=60))
    assert [stage.status for stage in done.stages] == ["succeeded", "succeeded"]
    assert (await settled(job.events()))[-1].seq == len(await settled(job.events(stream=True)))
    assert "working on 1-ptq" in "".join(chunk.text for chunk in await settled(job.logs(follow=True)))
    assert await settled(job.metrics()) == ()
    assert (await settled(job.measurements()))["bytes"].result == 3_000_000
    assert "seed: 7" in await settled(job.pinned_recipe())
    assert len(await settled(job.download(folder / "out"))) == len(await settled(job.files()))
    with pytest.raises(lathe.APIError) as refused:
        await settled(job.push_to_hub({"repo_id": "me/x"}))
    assert refused.value.status in (409, 422)
    assert job.id in {each.id for each in await settled(client.jobs.list(status=["succeeded"], page_size=1))}
    if ("GET", "/v1/comparisons") in operations:
        other = await settled((await settled(client.jobs.create(recipe()))).result(timeout=60))
        assert [each.id for each in (await settled(client.compare([job.id, other.id]))).jobs] == [job.id, other.id]
    await settled(job.delete())
    with pytest.raises(lathe.NotFound):
        await settled(job.refresh())


async def _until(client: Any, job_id: str, status: str) -> None:
    for _ in range(600):
        if (await settled(client.jobs.get(job_id))).status == status:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{job_id} is not {status}")


async def _access(client: Any) -> None:
    made = await settled(client.keys.create("walk", scopes=["jobs:read"], expires_in_days=1))
    assert made.id in {key.id for key in await settled(client.keys.list())}
    await settled(client.keys.revoke(made.id))
    name = f"hub {os.urandom(4).hex()}"
    await settled(client.credentials.put(name, "hf_x"))
    assert name in {item.name for item in await settled(client.credentials.list())}
    await settled(client.credentials.delete(name))
    assert (await settled(client.project())).unfinished >= 0
    assert "key.create" in {entry.action for entry in await settled(client.audit())}


async def _webhooks(client: Any) -> None:
    receivers, messages = client.webhook_endpoints, client.webhook_messages
    made = await settled(receivers.create(RECEIVER, events=["job.failed"]))
    assert made.secret.startswith("whsec_")
    assert (await settled(receivers.get(made.id))).secret is None
    assert made.id in {item.id for item in await settled(receivers.list())}
    assert (await settled(receivers.update(made.id, description="walk"))).description == "walk"
    assert (await settled(receivers.rotate_secret(made.id))).secret != made.secret
    sent = await settled(receivers.test(made.id))
    assert (await settled(messages.get(sent.id))).type == "webhook.test"
    assert (await settled(messages.redeliver(sent.id))).id == sent.id
    assert await settled(receivers.deliveries(made.id)) is not None
    assert (await settled(receivers.replay(made.id, since=datetime(2026, 1, 1, tzinfo=UTC)))).messages >= 0
    await settled(receivers.delete(made.id))
