"""Keys and credentials of a project, for the async client."""

from collections.abc import AsyncIterator, Sequence

from lathe._protocol import access as protocol
from lathe._wire import AsyncWire
from lathe.models import ApiKey, Credential, Scope


class AsyncCredentials:
    """Hub tokens that recipes refer to by name. They can be replaced and removed, never read."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def put(self, name: str, token: str) -> Credential:
        """Store or replace a token."""
        return await self._wire.send(protocol.put_credential(name, token))

    def list(self) -> AsyncIterator[Credential]:
        """Names and ages, no tokens."""
        return self._wire.each(protocol.list_credentials, {})

    async def delete(self, name: str) -> None:
        """Forget a token."""
        await self._wire.send(protocol.delete_credential(name))


class AsyncKeys:
    """API keys of the project."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def create(self, name: str = "", *, scopes: Sequence[Scope], expires_in_days: int | None = None) -> ApiKey:
        """Make a key that is allowed no more than yours. The answer's `key` is shown this once."""
        return await self._wire.send(protocol.create_key(name, scopes, expires_in_days))

    def list(self) -> AsyncIterator[ApiKey]:
        """The project's keys, newest first, without the keys themselves."""
        return self._wire.each(protocol.list_keys, {})

    async def revoke(self, key_id: str) -> None:
        """Refuse a key from now on."""
        await self._wire.send(protocol.revoke_key(key_id))
