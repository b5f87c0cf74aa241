"""Which addresses we may connect to on behalf of a user: public ones, and those that the operator allows."""

import ipaddress
import logging
import queue
import socket
import threading
from collections.abc import Iterable
from typing import Self

log = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNICAST_6 = ipaddress.ip_network("2000::/3")
"""All that is routed in the open. What carries an IPv4 address elsewhere (mapped, translated, NAT64) is not in it."""
# Carrier-grade NAT, and ranges in between that carry an IPv4 address or are for examples: `is_global` alone lets some
# of them through.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "2002::/16", "2001::/32", "3fff::/20")
)
_WEB_PORTS = frozenset({80, 443})
_FIRST_FREE_port = 1024


class AddressRefused(Exception):
    """The receiver's name leads to an address that we must not connect to, or to none."""


class ResolverTooSlow(AddressRefused):
    """Nobody said in time where the name leads to."""


class AddressGuard:
    """Resolves a host and answers only with addresses that may be connected to."""

    def __init__(self, hosts: Iterable[str] = (), networks: Iterable[Network] = ()) -> None:
        self._hosts = frozenset(_plain(host) for host in hosts)
        self._networks = tuple(networks)

    @classmethod
    def allowing(cls, entries: Iterable[str]) -> Self:
        """From the operator's list: each entry is a network such as `10.0.0.0/8`, an address, or a host name."""
        hosts: list[str] = []
        networks: list[Network] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry.strip(), strict=False))
            except ValueError:
                hosts.append(entry.strip())
        return cls(hosts, networks)

    def addresses(self, host: str, port: int, timeout_seconds: float) -> list[str]:
        """Addresses of `host`, in the resolver's order. Raises `AddressRefused` when any one of them is not allowed,
        so that a name that mixes public and private answers gains nothing."""
        if port not in _WEB_PORTS and port < _FIRST_FREE_port and not self.is_listed(host):
            raise AddressRefused(f"port {port} belongs to another service; use 443, or one from {_FIRST_FREE_port} on")
        addresses = _resolve(host, port, timeout_seconds)
        for address in addresses:
            if not self._is_allowed(host, address):
                # The owner must not learn the addresses of our network from its name server; the operator may.
                log.warning("a webhook to %r leads to %s and is refused", host, address)
                raise AddressRefused(
                    f"{host} leads to an address that is not public; the operator can allow it in "
                    "LATHE_ALLOW_PRIVATE_WEBHOOKS"
                )
        return addresses

    def is_listed(self, host: str) -> bool:
        """Whether the operator named this receiver: its name, its address, or a network that its address lies in."""
        if _plain(host) in self._hosts:
            return True
        try:
            return self._in_networks(_parsed(host))
        except ValueError:
            return False

    def _is_allowed(self, host: str, address: str) -> bool:
        parsed = _parsed(address)
        return _is_public(parsed) or self._in_networks(parsed) or _plain(host) in self._hosts

    def _in_networks(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _is_public(address: Address) -> bool:
    """Whether an address is reachable by anyone, so that sending to it from our network opens nothing new."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST_6:
        return False
    if any(address in network for network in _REFUSED):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _resolve(host: str, port: int, timeout_seconds: float) -> list[str]:
    """What the system's resolver says. It knows no deadline, and a user's name server can make it wait for minutes."""
    answer: queue.SimpleQueue[list[str] | AddressRefused] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:
            answer.put(AddressRefused(f"{host} does not resolve: {error}"))

    threading.Thread(name="resolve", target=ask, daemon=True).start()
    try:
        resolved = answer.get(timeout=timeout_seconds)
    except queue.Empty as error:
        raise ResolverTooSlow(f"{host} did not resolve in time") from error
    if isinstance(resolved, AddressRefused):
        raise resolved
    return resolved


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def _parsed(text: str) -> Address:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
