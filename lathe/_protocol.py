"""The REST protocol without I/O: what to send for each operation, and how to read the answer.

The sync and the async client differ only in how they send a `Call`; everything that decides is here.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from lathe._stream import Cursor, L
from lathe.errors import APIError, BadResponse, ConnectionFailed, api_error
from lathe.models import (
    ApiKey,
    Artifact,
    AuditEntry,
    Credential,
    FormatInfo,
    Health,
    Job,
    JobEvent,
    LogChunk,
    MetricCurve,
    Page,
    Problem,
    Project,
    Scope,
    TechniqueInfo,
)
from lathe.webhook_models import WebhookDelivery, WebhookEndpoint, WebhookMessage, WebhookReplayed
from optcore.recipe import Recipe

T = TypeVar("T")
Params = Mapping[str, Any]
Verb = Literal["cancel", "pause", "resume", "retry", "publish"]
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and the reader of its answer. Every call may be sent again: POSTs carry an Idempotency-Key."""

    method: str
    path: str
    parse: Callable[[bytes], T]
    params: Params = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `httpx.Client.build_request`."""
        params = {name: value for name, value in self.params.items() if value is not None}
        return {
            "method": self.method,
            "url": self.path,
            "params": params,
            "json": self.body,
            "headers": dict(self.headers),
        }


def conclude(call: Call[T], response: httpx.Response) -> T:
    """The value that a complete answer stands for; raises `APIError` or `BadResponse`."""
    if not response.is_success:
        raise error_of(response)
    try:
        return call.parse(response.content)
    except (ValidationError, UnicodeDecodeError) as error:
        raise BadResponse(
            f"{call.method} {call.path} answered something else than the API promises: {_first_line(error)}",
            remedy="check that LATHE_URL is the address of a Lathe service, and that this package is as new as it",
        ) from error


def error_of(response: httpx.Response) -> APIError:
    """The typed error of a complete answer that is no success; also for one that is no problem document."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(
            type="about:blank",
            title=response.reason_phrase or "Unexpected answer",
            status=response.status_code,
            detail=f"HTTP {response.status_code} {response.reason_phrase} from {response.request.url}",
            code=f"http_{response.status_code}",
            remedy="check that LATHE_URL is the address of a Lathe service" if response.status_code < 500 else "",
        )
    return api_error(problem, retry_after_seconds=retry_after(response.headers))


def unreachable(url: httpx.URL, error: httpx.TransportError) -> ConnectionFailed:
    """The typed error for a request that got no answer."""
    return ConnectionFailed(
        f"no answer from {url.scheme}://{url.netloc.decode()}: {_first_line(error) or type(error).__name__}",
        remedy="start the service with `lathe up`, or set LATHE_URL to its address",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait that the answer asks for, given as a number or as a date."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def segment(value: str) -> str:
    """One path segment of an address: an empty one, or one with dots only, would name another resource."""
    if not value.strip("."):
        raise ValueError(f"not an identifier: {value!r}")
    return quote(value, safe="")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _json(kind: Any) -> Callable[[bytes], Any]:
    return TypeAdapter(kind).validate_json


def _nothing(_: bytes) -> None:
    return None


def _key(idempotency_key: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}


_job: Callable[[bytes], Job] = _json(Job)
_jobs: Callable[[bytes], Page[Job]] = _json(Page[Job])
_curves: Callable[[bytes], Page[MetricCurve]] = _json(Page[MetricCurve])
_LINES: Mapping[type, tuple[str, Callable[[bytes], Page[Any]]]] = {
    JobEvent: ("events", _json(Page[JobEvent])),
    LogChunk: ("logs", _json(Page[LogChunk])),
}
_artifacts: Callable[[bytes], Page[Artifact]] = _json(Page[Artifact])
_document: Callable[[bytes], dict[str, Any]] = _json(dict[str, Any])
_techniques: Callable[[bytes], Page[TechniqueInfo]] = _json(Page[TechniqueInfo])
_formats: Callable[[bytes], Page[FormatInfo]] = _json(Page[FormatInfo])
_endpoint: Callable[[bytes], WebhookEndpoint] = _json(WebhookEndpoint)
_endpoints: Callable[[bytes], Page[WebhookEndpoint]] = _json(Page[WebhookEndpoint])
_message: Callable[[bytes], WebhookMessage] = _json(WebhookMessage)
_deliveries: Callable[[bytes], Page[WebhookDelivery]] = _json(Page[WebhookDelivery])
_replayed: Callable[[bytes], WebhookReplayed] = _json(WebhookReplayed)
_credential: Callable[[bytes], Credential] = _json(Credential)
_credentials: Callable[[bytes], Page[Credential]] = _json(Page[Credential])
_api_key: Callable[[bytes], ApiKey] = _json(ApiKey)
_api_keys: Callable[[bytes], Page[ApiKey]] = _json(Page[ApiKey])
_project: Callable[[bytes], Project] = _json(Project)
_audit: Callable[[bytes], Page[AuditEntry]] = _json(Page[AuditEntry])
_health: Callable[[bytes], Health] = _json(Health)


def create_job(recipe: Recipe | Mapping[str, Any], idempotency_key: str | None) -> Call[Job]:
    """A mapping goes as it is: the service, which may be newer, is the one that judges it."""
    if not isinstance(recipe, (Recipe, Mapping)):
        raise TypeError(f"a recipe is a Recipe or a mapping, got {type(recipe).__name__}; for a file, create_from_file")
    body = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
    return Call("POST", "/v1/jobs", _job, body=body, headers=_key(idempotency_key))


def get_job(job_id: str, params: Params | None = None) -> Call[Job]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}", _job, params or {})


def list_jobs(params: Params) -> Call[Page[Job]]:
    return Call("GET", "/v1/jobs", _jobs, params)


def change_job(job_id: str, verb: Verb, body: Mapping[str, Any] | None = None) -> Call[Job]:
    document = None if body is None else dict(body)
    return Call("POST", f"/v1/jobs/{segment(job_id)}/{verb}", _job, body=document, headers=_key())


def delete_job(job_id: str) -> Call[None]:
    return Call("DELETE", f"/v1/jobs/{segment(job_id)}", _nothing)


def list_lines(job_id: str, cursor: Cursor[L]) -> Call[Page[L]]:
    """A page of the events or the log, from where the cursor is."""
    name, parse = _LINES[cursor.line]
    params, headers = {"after": cursor.seq or None}, {"Accept": "application/json"}
    return Call("GET", f"/v1/jobs/{segment(job_id)}/{name}", parse, params, headers=headers)


def stream_lines(job_id: str, cursor: Cursor[L]) -> Call[None]:
    """The same as a stream, which is read line by line and not from `parse`."""
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    if cursor.seq:
        headers["Last-Event-ID"] = str(cursor.seq)
    return Call("GET", f"/v1/jobs/{segment(job_id)}/{_LINES[cursor.line][0]}", _nothing, headers=headers)


def get_metrics(job_id: str, params: Params) -> Call[Page[MetricCurve]]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/metrics", _curves, params)


def list_artifacts(job_id: str, params: Params) -> Call[Page[Artifact]]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/artifacts", _artifacts, params)


def get_artifact(job_id: str, path: str, offset_bytes: int) -> Call[None]:
    """The bytes of one file from an offset on; read from the stream, not from `parse`."""
    # Compressed transfer would make the offsets and the sizes those of other bytes.
    headers = {"Accept-Encoding": "identity"}
    if offset_bytes:
        headers["Range"] = f"bytes={offset_bytes}-"
    where = "/".join(segment(part) for part in path.split("/"))
    return Call("GET", f"/v1/jobs/{segment(job_id)}/artifacts/{where}", _nothing, headers=headers)


def get_report(job_id: str) -> Call[dict[str, Any]]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/report", _document)


def get_recipe(job_id: str) -> Call[str]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/recipe", bytes.decode)


def list_techniques(params: Params) -> Call[Page[TechniqueInfo]]:
    return Call("GET", "/v1/techniques", _techniques, params)


def list_formats(params: Params) -> Call[Page[FormatInfo]]:
    return Call("GET", "/v1/formats", _formats, params)


def create_webhook_endpoint(url: str, events: Sequence[str] | None, description: str = "") -> Call[WebhookEndpoint]:
    body: dict[str, Any] = {"url": url, "description": description}
    if events is not None:
        body["events"] = list(events)
    return Call("POST", "/v1/webhook_endpoints", _endpoint, body=body, headers=_key())


def get_webhook_endpoint(endpoint_id: str) -> Call[WebhookEndpoint]:
    return Call("GET", _receiver(endpoint_id), _endpoint)


def list_webhook_endpoints(params: Params) -> Call[Page[WebhookEndpoint]]:
    return Call("GET", "/v1/webhook_endpoints", _endpoints, params)


def delete_webhook_endpoint(endpoint_id: str) -> Call[None]:
    return Call("DELETE", _receiver(endpoint_id), _nothing)


def update_webhook_endpoint(endpoint_id: str, changes: Mapping[str, Any]) -> Call[WebhookEndpoint]:
    """Null stands for what stays as it is."""
    return Call("PATCH", _receiver(endpoint_id), _endpoint, body=dict(changes))


def rotate_webhook_secret(endpoint_id: str) -> Call[WebhookEndpoint]:
    return Call("POST", f"{_receiver(endpoint_id)}/rotate_secret", _endpoint, headers=_key())


def send_test_webhook(endpoint_id: str) -> Call[WebhookMessage]:
    return Call("POST", f"{_receiver(endpoint_id)}/test", _message, headers=_key())


def list_webhook_deliveries(endpoint_id: str, params: Params) -> Call[Page[WebhookDelivery]]:
    return Call("GET", f"{_receiver(endpoint_id)}/deliveries", _deliveries, params)


def replay_webhook_messages(
    endpoint_id: str, since: datetime, until: datetime | None, statuses: Sequence[str]
) -> Call[WebhookReplayed]:
    body = {"since": since.isoformat(), "until": until and until.isoformat(), "statuses": list(statuses)}
    return Call("POST", f"{_receiver(endpoint_id)}/replay", _replayed, body=body, headers=_key())


def get_webhook_message(message_id: str) -> Call[WebhookMessage]:
    return Call("GET", f"/v1/webhook_messages/{segment(message_id)}", _message)


def redeliver_webhook_message(message_id: str) -> Call[WebhookMessage]:
    return Call("POST", f"/v1/webhook_messages/{segment(message_id)}/redeliver", _message, headers=_key())


def _receiver(endpoint_id: str) -> str:
    return f"/v1/webhook_endpoints/{segment(endpoint_id)}"


def put_credential(name: str, token: str) -> Call[Credential]:
    return Call("PUT", f"/v1/credentials/{segment(name)}", _credential, body={"token": token})


def list_credentials(params: Params) -> Call[Page[Credential]]:
    return Call("GET", "/v1/credentials", _credentials, params)


def delete_credential(name: str) -> Call[None]:
    return Call("DELETE", f"/v1/credentials/{segment(name)}", _nothing)


def create_key(name: str, scopes: Sequence[Scope], expires_in_days: int | None) -> Call[ApiKey]:
    body = {"name": name, "scopes": list(scopes), "expires_in_days": expires_in_days}
    return Call("POST", "/v1/keys", _api_key, body=body, headers=_key())


def list_keys(params: Params) -> Call[Page[ApiKey]]:
    return Call("GET", "/v1/keys", _api_keys, params)


def revoke_key(key_id: str) -> Call[None]:
    return Call("DELETE", f"/v1/keys/{segment(key_id)}", _nothing)


def get_project() -> Call[Project]:
    return Call("GET", "/v1/project", _project)


def list_audit_entries(params: Params) -> Call[Page[AuditEntry]]:
    return Call("GET", "/v1/audit", _audit, params)


def health() -> Call[Health]:
    return Call("GET", "/readyz", _health)
