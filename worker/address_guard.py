"""Which addresses we may connect to on behalf of a user: public ones, and those that the operator allows."""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Carrier-grade NAT, and ranges that carry an IPv4 address inside: `is_global` alone lets some of them through.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "100.64.0.0/10",
        "192.0.0.0/24",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/32",
        "::/96",
        "fec0::/10",
        "3fff::/20",
        "192.88.99.0/24",
    )
)


class AddressRefused(Exception):
    """The receiver's name leads to an address that we must not connect to, or to none."""


class AddressGuard:
    """Resolves a host and answers only with addresses that may be connected to."""

    def __init__(self, hosts: Iterable[str] = (), networks: Iterable[Network] = ()) -> None:
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
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

    def addresses(self, host: str, port: int) -> list[str]:
        """Addresses of `host`, in the resolver's order. Raises `AddressRefused` when any one of them is not allowed,
        so that a name that mixes public and private answers gains nothing."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise AddressRefused(f"{host} does not resolve: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if not self._is_allowed(host, address):
                raise AddressRefused(
                    f"{host} leads to {address}, which is not a public address; the operator can allow it "
                    "in LATHE_ALLOW_PRIVATE_WEBHOOKS"
                )
        return addresses

    def is_listed(self, host: str) -> bool:
        """Whether the operator named this receiver, by name or by the network that all its addresses lie in."""
        if host.lower().rstrip(".") in self._hosts:
            return True
        try:
            return self._in_networks(_parsed(host))
        except ValueError:
            return False

    def _is_allowed(self, host: str, address: str) -> bool:
        try:
            parsed = _parsed(address)
        except ValueError:  # a scoped address such as fe80::1%eth0
            return False
        return is_public(parsed) or self._in_networks(parsed) or host.lower().rstrip(".") in self._hosts

    def _in_networks(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def is_public(address: Address) -> bool:
    """Whether an address is reachable by anyone, so that sending to it from our network opens nothing new."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in _REFUSED):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _parsed(text: str) -> Address:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
