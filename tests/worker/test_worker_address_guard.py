"""Which addresses a webhook may go to: however they are written, whoever answers for the name, whenever."""

import socket
import time

import pytest

from worker.address_guard import AddressGuard, AddressRefused, ResolverTooSlow

STRICT = AddressGuard()


def _resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0x7f.1",
        "127.0.0.1.",
        "\uff11\uff12\uff17.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::10.0.0.1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fe80::1",
        "fe80::1%lo",
        "fe80::5efe:10.0.0.1",
        "fec0::1",
        "5f00::1",
        "fd00:ec2::254",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match=r"not public|does not resolve"):
        STRICT.addresses(host, 443, 5)


@pytest.mark.parametrize("host", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_allowed(host: str) -> None:
    assert STRICT.addresses(host, 443, 5) == [host]


def test_the_operator_allows_networks_and_names() -> None:
    guard = AddressGuard.allowing(["10.0.0.0/8", "::1"])
    assert guard.addresses("10.9.8.7", 80, 5) == ["10.9.8.7"]
    assert guard.addresses("::1", 80, 5) == ["::1"]
    assert guard.is_listed("10.9.8.7")
    assert not guard.is_listed("hooks.example")
    with pytest.raises(AddressRefused):
        guard.addresses("127.0.0.1", 80, 5)


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"])
def test_one_private_answer_spoils_a_public_name(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _resolving_to(monkeypatch, "8.8.8.8", address)
    with pytest.raises(AddressRefused, match="not public") as refused:
        STRICT.addresses("rebinding.example", 443, 5)
    assert address not in str(refused.value), "a tenant must not read our name server's answers"
    assert AddressGuard.allowing(["rebinding.example"]).addresses("rebinding.example", 443, 5) == ["8.8.8.8", address]


@pytest.mark.parametrize("port", [0, 1, 21, 22, 25, 110, 143, 445, 587, 1023])
def test_ports_of_other_services_are_refused_unless_the_operator_listed_the_host(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _resolving_to(monkeypatch, "8.8.8.8")
    with pytest.raises(AddressRefused, match=f"port {port} "):
        STRICT.addresses("hooks.example", port, 5)
    assert AddressGuard.allowing(["hooks.example"]).addresses("hooks.example", port, 5) == ["8.8.8.8"]
    for usual in (443, 8443):
        assert STRICT.addresses("hooks.example", usual, 5) == ["8.8.8.8"]


def test_a_name_server_that_does_not_answer_gains_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        time.sleep(1)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    started = time.monotonic()
    with pytest.raises(ResolverTooSlow):
        STRICT.addresses("slow.example", 443, 0.2)
    assert time.monotonic() - started < 0.9
