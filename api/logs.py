"""Logs: one JSON object a line on standard error, without secrets."""

import logging
import re
from collections.abc import MutableMapping
from typing import Any

import structlog

from api import tracing

_SECRETS = re.compile(r"\b(lk_|hf_|whsec_)[\w+/=-]{8,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")
_HANDLER = "lathe-json"


def configure(level: str) -> None:
    """Send structlog's and the standard library's records through one JSON formatter. Doing it twice is harmless."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    _install(logging.getLogger(), level, shared)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # we write a line for each request ourselves


def hide_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace keys, tokens and passwords of URLs in every text: a last net, nothing should get so far."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _SECRETS.sub("[hidden]", value)
    return event


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The trace that the line belongs to, where there is one."""
    if (trace_id := tracing.trace_id()) is not None:
        event["trace_id"] = trace_id
    return event


def _install(root: logging.Logger, level: str, shared: list[Any]) -> None:
    root.setLevel(level.upper())
    if any(handler.name == _HANDLER for handler in root.handlers):
        return
    handler = logging.StreamHandler()
    handler.name = _HANDLER
    finish: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=finish))
    root.addHandler(handler)
