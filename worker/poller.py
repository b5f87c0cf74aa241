"""Work that is found without a message: the watchdog of a worker whose broker went silent, and all of `--no-broker`.

    python -m worker.poller gpu     engines, one job at a time
    python -m worker.poller cpu     pushes and webhooks, and the reconciler

A message only saves a wait, so a service without a broker loses nothing but that.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from api import tracing
from api.logs import configure
from api.store import outbox
from worker import cache, drain
from worker.context import Context, context
from worker.heartbeat import UNREACHABLE
from worker.presence import announce_presence
from worker.publisher import publish
from worker.reconciler import Reconciler
from worker.runner import run_next
from worker.webhooks import deliver

log = logging.getLogger(__name__)

IDLE_seconds = 1.0


def watch_the_queue() -> None:
    """Start a thread that takes what waits when no message says so, for as long as the process lives.

    The engine's parent-death signal follows the thread that started it, and this one ends with the process only.
    """
    threading.Thread(name="watchdog", target=_watch, daemon=True).start()


def _watch() -> None:
    here, pause = context(), threading.Event()
    sweep = _sweeping(here)
    while not pause.wait(here.settings.watchdog_seconds):
        _until_idle(lambda: not drain.is_on() and run_next(here))
        _until_idle(sweep)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process of one kind of work. SIGTERM or SIGINT gives a running job back and ends it."""
    wanted = _parser().parse_args(arguments)
    here = context()
    configure(here.settings.log_level)
    tracing.configure("lathe-worker")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _drain)
    announce_presence(runs_engines=wanted.kind == "gpu")
    log.info("worker ready")
    step = _engines(here) if wanted.kind == "gpu" else _short_work(here)
    while not drain.is_on():
        _until_idle(step)
        drain.wait(IDLE_seconds)
    tracing.shut_down()
    return 0


def _engines(here: Context) -> Callable[[], bool]:
    sweep = _sweeping(here)
    return lambda: not drain.is_on() and (run_next(here) or sweep())


def _sweeping(here: Context) -> Callable[[], bool]:
    """Sweeps the caches of this host when its period is over; never answers that there is more to do."""
    due = time.monotonic()

    def step() -> bool:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + here.settings.sweep_seconds
            cache.sweep(here.settings)
        return False

    return step


def _short_work(here: Context) -> Callable[[], bool]:
    """One outbox message at a time. It is marked first: a crash costs the wait until it is announced again."""
    reconciler = Reconciler(here.settings, here.sessions)
    handlers: Mapping[str, Callable[[dict[str, str]], None]] = {
        "publish": lambda payload: publish(payload["job_id"], here),
        "deliver_webhook": lambda payload: deliver(payload["message_id"], here),
    }

    def step() -> bool:
        try:
            reconciler.tick()
            with here.sessions.begin() as session:
                taken = list(outbox.take(session, limit=1))
                outbox.mark_published(session, [message.id for message in taken])
        except UNREACHABLE:
            reconciler.database_was_away()
            raise
        for message in taken:
            if message.topic in handlers:  # `run_job` is found by looking
                handlers[message.topic](message.payload)
        return bool(taken) and not drain.is_on()

    return step


def _until_idle(step: Callable[[], bool]) -> None:
    try:
        while step():
            pass
    except UNREACHABLE as error:
        log.warning("database away: %s", type(error).__name__)
    except Exception:  # the outermost loop: a bug in one row must not end the service
        log.exception("poller stumbled")


def _drain(number: int, frame: FrameType | None) -> None:
    drain.begin()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.poller", description=__doc__)
    parser.add_argument("kind", choices=("gpu", "cpu"), help="engines; or pushes, webhooks and the reconciler")
    return parser


if __name__ == "__main__":
    sys.exit(main())
