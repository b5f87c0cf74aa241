"""The settings of the service and its workers: every environment variable once, read at the start, frozen after."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.vault import Vault


def _folders(value: Any) -> Any:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


def _names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [] if value.lower() == "false" else [part.strip() for part in value.split(",") if part.strip()]


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _plain_url(value: Any) -> Any:
    """libpq knows no `+psycopg`, and puts the whole URL into its complaint."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", value) if isinstance(value, str) else value


_SecretKey = Annotated[SecretStr, Field(min_length=32)]


class Settings(BaseSettings):
    """Environment variables with the prefix `LATHE_`."""

    model_config = SettingsConfigDict(
        env_prefix="LATHE_", frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    database_url: Annotated[str, BeforeValidator(_plain_url)] = Field(repr=False)
    """`postgresql://user:password@host:port/name`."""
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """The broker. Only the worker uses it."""
    data_dir: Path
    """Artifacts (`artifacts/<job>/<epoch>/`) and the engine's work folder."""
    artifact_store: str = Field(default="", pattern=r"^(s3://[a-z0-9][a-z0-9.-]+(/[\w.-]+)*)?$")
    """`s3://bucket/prefix` of finished artifacts, with the usual AWS_* variables; else they are in `LATHE_DATA_DIR`."""
    artifact_store_allow_http: bool = False
    """Let AWS_ENDPOINT_URL be an `http://` address, where everybody on the way can read and change artifacts."""
    secret_key: _SecretKey
    """Seals stored Hub tokens and webhook secrets; losing it loses them."""
    old_secret_keys: Annotated[tuple[_SecretKey, ...], NoDecode, BeforeValidator(_names)] = ()
    """Keys, separated by commas, that still open what was sealed with them, until `python -m api.rotate` has run."""
    model_roots: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders, separated like PATH, below which local paths of recipes may lie; empty refuses all."""
    allow_private_webhooks: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = ()
    """Hosts or CIDR blocks, separated by commas, of webhook receivers that may have a private address."""
    webhook_rotation_seconds: float = Field(default=24 * 3600, ge=0)
    """After the rotation of a webhook secret, messages are signed with the old one as well for so long."""
    log_level: str = "INFO"
    """Least level of the JSON log lines."""
    max_body_bytes: int = 256 * 1024
    """Largest request body."""
    rate_limit: str = "1200/minute"
    """Requests of one API key, as in `10/second` or `1200/minute`."""
    sign_in_rate_limit: str = "10/minute"
    """Failed sign-ins to the dashboard of one address; of version 6, of one network. Behind a proxy elsewhere than
    127.0.0.1 that is everybody's, unless `FORWARDED_ALLOW_IPS` names the proxy."""
    rate_limit_storage: SecretStr = SecretStr("memory://")
    """Where they are counted: `redis://...` when several API processes serve; each counts for itself otherwise."""
    prices: Annotated[dict[str, Annotated[float, Field(ge=0)]], NoDecode, BeforeValidator(_json)] = {}
    """Price of an hour by kind of machine, as JSON: of one GPU by a part of its name, of a CPU worker as `cpu`, such as
    `{"H200": 3.5, "cpu": 0.1}`. Estimates say no money without it."""
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    """Of the prices, by its three letters."""
    metrics_token: SecretStr = SecretStr("")
    """Bearer token for `GET /metrics`; without one, only this machine may read them."""
    trust_traceparent: bool = False
    """Go on with the `traceparent` of any caller, whose flag then decides whether a trace is kept; else link to it."""
    host: str = "127.0.0.1"
    """Address that `python -m api` listens on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port that `python -m api` listens on."""

    @property
    def vault(self) -> Vault:
        """The vault of `secret_key`, which the old ones still open."""
        return Vault(self.secret_key.get_secret_value(), (key.get_secret_value() for key in self.old_secret_keys))

    @property
    def artifacts_dir(self) -> Path:
        """Where finished artifacts lie, one folder a job, one below it an epoch."""
        return self.data_dir / "artifacts"
