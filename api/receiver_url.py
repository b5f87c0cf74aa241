"""Which URLs may be webhook receivers: an early word, for delivery checks every address again when it sends."""

import ipaddress
from urllib.parse import SplitResult, urlsplit

from api.errors import Invalid
from api.settings import Settings


def check(url: str, settings: Settings) -> None:
    """Raises `Invalid` for a URL that delivery would refuse."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(f"not a URL: {error}", "give an https:// address") from error
    if not host or parts.username is not None or parts.fragment or not url.isascii() or not url.isprintable():
        raise _refused("the URL needs a host, and no user, password or fragment", "give a plain https:// address")
    if not settings.allow_private_webhooks and not _is_public(parts):
        raise _refused(
            "the receiver is not a public https:// address",
            "use one, or have the operator allow it in LATHE_ALLOW_PRIVATE_WEBHOOKS",
        )


def _is_public(parts: SplitResult) -> bool:
    if parts.scheme != "https":
        return False
    try:
        return ipaddress.ip_address(parts.hostname or "").is_global
    except ValueError:
        return True


def _refused(message: str, remedy: str) -> Invalid:
    return Invalid(message, remedy=remedy, field="/url")
