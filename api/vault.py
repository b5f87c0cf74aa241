"""Secrets at rest: sealed with a key that belongs to one place, so a sealed value moved elsewhere does not open."""

import base64
import hashlib
import hmac
from collections.abc import Iterable

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from api.errors import VaultError


class Vault:
    """Seals short texts with `LATHE_SECRET_KEY`; opens what was sealed with it or one of `LATHE_OLD_SECRET_KEYS`."""

    def __init__(self, secret_key: str, old_keys: Iterable[str] = ()) -> None:
        self._secret_keys = [key.encode() for key in (secret_key, *old_keys)]

    def seal(self, text: str, place: str) -> str:
        """Encrypt and authenticate `text` for `place`, such as `credential/acme/default`."""
        return self._fernets(place)[0].encrypt(text.encode()).decode()

    def open(self, sealed: str, place: str) -> str:
        """The sealed text. Raises `VaultError` when no key opens it, or the value was made for another place."""
        try:
            return MultiFernet(self._fernets(place)).decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise VaultError(
                f"cannot open the secret of {place}",
                remedy="name the key that it was stored with in LATHE_OLD_SECRET_KEYS, or store the secret again",
            ) from error

    def reseal(self, sealed: str, place: str) -> str | None:
        """The value, sealed with the present key; None when it already is. Raises `VaultError` as `open` does."""
        try:
            self._fernets(place)[0].decrypt(sealed.encode())
        except InvalidToken:
            return self.seal(self.open(sealed, place), place)
        return None

    def _fernets(self, place: str) -> list[Fernet]:
        keys = (hmac.digest(secret_key, place.encode(), hashlib.sha256) for secret_key in self._secret_keys)
        return [Fernet(base64.urlsafe_b64encode(key)) for key in keys]
