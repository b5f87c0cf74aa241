"""What is asked about who may do what: keys, credentials, the project and its audit."""

from collections.abc import Sequence

from lathe._protocol.call import Call, Params, idempotency, nothing, reader, segment
from lathe.models import ApiKey, AuditEntry, Credential, Page, Project, Scope

_credential = reader(Credential)
_credentials = reader(Page[Credential])
_api_key = reader(ApiKey)
_api_keys = reader(Page[ApiKey])
_project = reader(Project)
_audit = reader(Page[AuditEntry])


def put_credential(name: str, token: str) -> Call[Credential]:
    return Call("PUT", f"/v1/credentials/{segment(name)}", _credential, body={"token": token})


def list_credentials(params: Params) -> Call[Page[Credential]]:
    return Call("GET", "/v1/credentials", _credentials, params)


def delete_credential(name: str) -> Call[None]:
    return Call("DELETE", f"/v1/credentials/{segment(name)}", nothing)


def create_key(name: str, scopes: Sequence[Scope], expires_in_days: int | None) -> Call[ApiKey]:
    body = {"name": name, "scopes": list(scopes), "expires_in_days": expires_in_days}
    return Call("POST", "/v1/keys", _api_key, body=body, headers=idempotency())


def list_keys(params: Params) -> Call[Page[ApiKey]]:
    return Call("GET", "/v1/keys", _api_keys, params)


def revoke_key(key_id: str) -> Call[None]:
    return Call("DELETE", f"/v1/keys/{segment(key_id)}", nothing)


def get_project() -> Call[Project]:
    return Call("GET", "/v1/project", _project)


def list_audit_entries(params: Params) -> Call[Page[AuditEntry]]:
    return Call("GET", "/v1/audit", _audit, params)
