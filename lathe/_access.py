"""Keys and credentials of a project, for the sync client."""

from collections.abc import Iterator, Sequence

from lathe._protocol import access as protocol
from lathe._wire import Wire
from lathe.models import ApiKey, Credential, Scope


class Credentials:
    """Hub tokens that recipes refer to by name. They can be replaced and removed, never read."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def put(self, name: str, token: str) -> Credential:
        """Store or replace a token."""
        return self._wire.send(protocol.put_credential(name, token))

    def list(self) -> Iterator[Credential]:
        """Names and ages, no tokens."""
        return self._wire.each(protocol.list_credentials, {})

    def delete(self, name: str) -> None:
        """Forget a token."""
        self._wire.send(protocol.delete_credential(name))


class Keys:
    """API keys of the project."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, name: str = "", *, scopes: Sequence[Scope], expires_in_days: int | None = None) -> ApiKey:
        """Make a key that is allowed no more than yours. The answer's `key` is shown this once."""
        return self._wire.send(protocol.create_key(name, scopes, expires_in_days))

    def list(self) -> Iterator[ApiKey]:
        """The project's keys, newest first, without the keys themselves."""
        return self._wire.each(protocol.list_keys, {})

    def revoke(self, key_id: str) -> None:
        """Refuse a key from now on."""
        self._wire.send(protocol.revoke_key(key_id))
