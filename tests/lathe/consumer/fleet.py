"""Several jobs at once: with the async client."""

import asyncio
from collections.abc import Mapping, Sequence

import lathe


async def run_all(client: lathe.AsyncClient, recipes: Sequence[Mapping[str, object]]) -> list[str]:
    """How each job ended."""
    jobs: list[lathe.AsyncJob] = await asyncio.gather(*(client.jobs.create(recipe) for recipe in recipes))
    ended: tuple[lathe.AsyncJob, ...] = await client.jobs.wait([job.id for job in jobs], timeout=120)
    return [job.status for job in ended]


async def follow(job: lathe.AsyncJob) -> list[int]:
    """The numbers of its events, as they come."""
    numbers: list[int] = []
    async for event in job.events(stream=True):
        numbers.append(event.seq)
    return numbers


async def size(job: lathe.AsyncJob) -> float | None:
    """Bytes of the result."""
    return (await job.measurements())["bytes"].result


async def free(client: lathe.AsyncClient) -> list[str]:
    """Hosts that wait for work."""
    workers: list[lathe.WorkerInfo] = await client.workers()
    return [worker.host for worker in workers if worker.status == "idle"]
