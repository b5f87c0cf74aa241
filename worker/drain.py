"""Drain: the main process is told to stop, and the pool's child that runs a job has to hear of it.

A warm shutdown waits for running tasks without telling them. The event is made before the pool forks, so that both
sides share it; a file or a signal would need the child's name.
"""

import multiprocessing

_draining = multiprocessing.get_context("fork").Event()


def begin() -> None:
    """Tell every process of this worker to give back what it holds."""
    _draining.set()


def wait(seconds: float) -> bool:
    """Sleep, but not through a drain; whether there is one."""
    return _draining.wait(seconds)


def is_on() -> bool:
    """Whether this worker takes no new job."""
    return _draining.is_set()
