"""Secrets at rest: sealed with a key that belongs to one place, so a sealed value moved elsewhere does not open."""

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken

from api.errors import VaultError


class Vault:
    """Seals and opens short texts with `LATHE_SECRET_KEY`."""

    def __init__(self, secret_key: str) -> None:
        self._secret_key = secret_key.encode()

    def seal(self, text: str, place: str) -> str:
        """Encrypt and authenticate `text` for `place`, such as `credential/acme/default`."""
        return self._fernet(place).encrypt(text.encode()).decode()

    def open(self, sealed: str, place: str) -> str:
        """The sealed text. Raises `VaultError` when the key changed, or the value was made for another place."""
        try:
            return self._fernet(place).decrypt(sealed).decode()
        except InvalidToken as error:
            raise VaultError(
                f"cannot open the secret of {place}",
                remedy="start with the LATHE_SECRET_KEY that it was stored with, or store the secret again",
            ) from error

    def _fernet(self, place: str) -> Fernet:
        key = hmac.digest(self._secret_key, place.encode(), hashlib.sha256)
        return Fernet(base64.urlsafe_b64encode(key))
