"""The Celery application. A message is a hint that carries ids; the database decides, so messages are acked early.

Start a worker for the engine with `celery -A worker.app worker -Q gpu -c 1 --without-gossip --without-mingle`, and one
for the short work with `-Q cpu -c 4`.
"""

import logging
from typing import Any

import structlog
from celery import Celery, Task
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down

from worker import drain
from worker.context import settings
from worker.logs import configure
from worker.presence import announce_presence

VISIBILITY_seconds = 3600
"""Guards only the moment between delivery and the early ack. Redis wants the same number in three places."""

QUEUES = {"run_job": "gpu", "publish": "cpu", "deliver_webhook": "cpu"}
"""Topics of the outbox, which are the names of the tasks, and the queue of each."""

log = logging.getLogger(__name__)


class LoggedTask(Task):  # type: ignore[misc]
    """Base of our tasks: the log lines of a task carry its name and its ids."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with structlog.contextvars.bound_contextvars(task=self.name, **kwargs):
            return super().__call__(*args, **kwargs)


def make_app(redis_url: str) -> Celery:
    """The application on a broker. Every setting that a lost or doubled message depends on is written out."""
    transport = {
        "visibility_timeout": VISIBILITY_seconds,
        "global_keyprefix": "lathe:",
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
    app = Celery("lathe", task_cls=LoggedTask, include=["worker.tasks"], set_as_current=False)
    app.conf.update(
        broker_url=redis_url,
        broker_transport_options=transport,
        result_backend_transport_options={"visibility_timeout": VISIBILITY_seconds},
        visibility_timeout=VISIBILITY_seconds,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_create_missing_queues=True,
        task_default_queue="cpu",
        task_routes={name: {"queue": queue} for name, queue in QUEUES.items()},
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=60,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=True,
        enable_utc=True,
    )
    return app


def assert_safe(app: Celery) -> None:
    """Fail at the start when a setting would let the broker run a job twice or lose it."""
    conf = app.conf
    timeouts = {
        conf.broker_transport_options["visibility_timeout"],
        conf.result_backend_transport_options["visibility_timeout"],
        conf.visibility_timeout,
    }
    assert timeouts == {VISIBILITY_seconds}, f"visibility timeouts differ: {timeouts}"
    assert not conf.task_acks_late
    assert not conf.task_time_limit, "the supervisor owns the time of a job"
    assert conf.worker_disable_prefetch


app = make_app(settings().redis_url)


def _configure_logging(**_: object) -> None:
    configure(settings().log_level)


def _start_presence(**_: object) -> None:
    announce_presence()


def _check(**_: object) -> None:
    assert_safe(app)
    log.info("worker ready")


def _drain(**_: object) -> None:
    drain.begin()


setup_logging.connect(_configure_logging)
worker_process_init.connect(_start_presence)
worker_ready.connect(_check)
worker_shutting_down.connect(_drain)
