"""The work of one layer spread over the GPUs of a process, a thread for each."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from threading import Event
from typing import TypeVar

import torch

R = TypeVar("R")


def computing_devices(home: torch.device) -> tuple[torch.device, ...]:
    """`home`, where layers are, and every other GPU that CUDA_VISIBLE_DEVICES shows."""
    if home.type != "cuda":
        return (home,)
    own = torch.cuda.current_device() if home.index is None else home.index
    others = [index for index in range(torch.cuda.device_count()) if index != own]
    return tuple(torch.device("cuda", index) for index in (own, *others))


def shares(costs: Sequence[float], count: int) -> list[list[int]]:
    """Places of the costs in so many shares, each in order: the dearest first to the share that has least so far.

    The largest share is at most 4/3 of what it must be (Graham, 1969).
    """
    loads, found = [0.0] * count, [list[int]() for _ in range(count)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        least = loads.index(min(loads))
        loads[least] += costs[place]
        found[least].append(place)
    return [sorted(share) for share in found]


def each_on_its_own(devices: Sequence[torch.device], works: Sequence[Callable[[], Iterator[R]]]) -> list[list[R]]:
    """What each work gives, done at the same time on its device; one on one device runs in this thread.

    The first failure is raised, as it was, once the others have stopped: each does so at the next thing that it gives.
    Every device is used through the stream that is current there now, so results are ready for whoever uses it next.
    Gradients are not recorded.
    """
    if len(works) < 2:
        return [list(work()) for work in works]
    streams = [torch.cuda.current_stream(device) for device in devices if device.type == "cuda"]
    stopped = Event()

    def run(device: torch.device, work: Callable[[], Iterator[R]]) -> list[R]:
        given: list[R] = []
        with torch.no_grad(), ExitStack() as held:  # a new thread knows neither this nor the streams
            for stream in sorted(streams, key=lambda stream: stream.device == device):
                held.enter_context(torch.cuda.stream(stream))
            for one in work():
                given.append(one)
                if stopped.is_set():
                    break
        return given

    with ThreadPoolExecutor(len(works), thread_name_prefix="device") as pool:
        futures = [pool.submit(run, device, work) for device, work in zip(devices, works, strict=True)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stopped.set()
    return [future.result() for future in futures]
