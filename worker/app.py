"""The Celery application, for `celery -A worker.app worker`.

One worker for the engine: `-Q gpu -c 1 --without-gossip --without-mingle`; one for the short work: `-Q cpu -c 4`.
"""

import logging
from typing import Any

import structlog
from celery import Celery, Task
from celery.signals import (
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutting_down,
)

from api import tracing
from api.logs import configure
from worker import drain
from worker.conf import ENGINE_QUEUE, assert_safe, configuration
from worker.context import settings
from worker.presence import announce_presence

log = logging.getLogger(__name__)


class LoggedTask(Task):  # type: ignore[misc]
    """Base of our tasks: the log lines of a task carry its name and its ids."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with structlog.contextvars.bound_contextvars(task=self.name, **kwargs):
            return super().__call__(*args, **kwargs)


app = Celery("lathe", task_cls=LoggedTask, include=["worker.tasks"])
app.conf.update(configuration(settings().redis_url))


def _configure_logging(**_: object) -> None:
    configure(settings().log_level)


def _start_threads(**_: object) -> None:
    tracing.configure("lathe-worker")
    runs_engines = ENGINE_QUEUE in app.amqp.queues.consume_from
    announce_presence(runs_engines=runs_engines)
    if runs_engines:
        from worker.poller import watch_the_queue  # it knows the work, which the application must not load

        watch_the_queue()


def _check(**_: object) -> None:
    assert_safe(app)
    log.info("worker ready")


def _drain(**_: object) -> None:
    drain.begin()


def _send_traces(**_: object) -> None:
    tracing.shut_down()


setup_logging.connect(_configure_logging)
worker_process_init.connect(_start_threads)
worker_process_shutdown.connect(_send_traces)
worker_ready.connect(_check)
worker_shutting_down.connect(_drain)
