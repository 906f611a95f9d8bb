"""Addresses of hosts, and ports that are kept free for a server."""

import socket
import sys

import pytest

from safelight.service.runtime.addresses import BadAddress, BoundAddress, bound, find_address
from safelight.service.runtime.shared_listener import start_listening

V4, V6 = socket.AF_INET, socket.AF_INET6
has_v6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="known of Linux only")


@pytest.mark.parametrize(
    ("host", "address", "family", "url"),
    [
        ("127.0.0.1", "127.0.0.1", V4, "http://127.0.0.1:81"),
        ("127.0.0.9", "127.0.0.9", V4, "http://127.0.0.9:81"),
        ("0.0.0.0", "0.0.0.0", V4, "http://127.0.0.1:81"),
        ("", "0.0.0.0", V4, "http://127.0.0.1:81"),
        ("localhost", "127.0.0.1", V4, "http://127.0.0.1:81"),
        ("::1", "::1", V6, "http://[::1]:81"),
        ("[::1]", "::1", V6, "http://[::1]:81"),
        ("::", "::", V6, "http://[::1]:81"),
        ("[::]", "::", V6, "http://[::1]:81"),
        ("0:0:0:0:0:0:0:1", "::1", V6, "http://[::1]:81"),
        ("fd00::7", "fd00::7", V6, "http://[fd00::7]:81"),
    ],
)
def test_a_host_has_an_address_and_a_url(host: str, address: str, family: int, url: str) -> None:
    listening = find_address(host, 81)
    assert (listening.host, listening.port, listening.family, listening.url) == (address, 81, family, url)


def test_a_link_local_address_keeps_its_interface() -> None:
    name = socket.if_indextoname(1)
    listening = find_address(f"fe80::1%{name}", 81)
    assert (listening.host, listening.url) == (f"fe80::1%{name}", f"http://[fe80::1%25{name}]:81")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "127.0.0.1:8000", "a..b", "x" * 70])
def test_a_host_without_an_address_is_named(host: str) -> None:
    with pytest.raises(BadAddress, match="cannot listen on .*; choose another with --host"):
        find_address(host, 81)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", pytest.param("::1", marks=has_v6)])
def test_port_0_becomes_a_port_that_nobody_else_gets(host: str) -> None:
    with bound(find_address(host, 0)) as first, bound(find_address(host, 0)) as second:
        assert first.address.port != second.address.port != 0
        with pytest.raises(BadAddress, match="in use; choose another with --port"), bound(first.address):
            pytest.fail("bound twice")


def test_a_port_in_use_and_an_address_of_another_machine_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = find_address("127.0.0.1", server.getsockname()[1])
        refusal = f"port {address.port} of 127.0.0.1: Address already in use"
        with pytest.raises(BadAddress, match=refusal), bound(address):
            pytest.fail("bound")
    elsewhere = find_address("203.0.113.7", 0)
    with pytest.raises(BadAddress, match="choose another with --host"), bound(elsewhere):
        pytest.fail("bound")


def exchange(at: BoundAddress) -> None:
    """A connection that the server closes first, whose port lingers."""
    start_listening(at.listener)
    with socket.create_connection((at.address.host, at.address.port)) as client:
        connection, _ = at.listener.accept()
        connection.close()
        assert client.recv(1) == b""


@on_linux
def test_a_port_of_a_service_that_has_just_ended_can_be_used() -> None:
    with bound(find_address("127.0.0.1", 0)) as at:
        exchange(at)
    with bound(at.address) as again:
        exchange(again)
        with pytest.raises(BadAddress), bound(at.address):
            pytest.fail("bound twice")


@on_linux
def test_the_kernel_gives_a_bound_port_to_no_other_socket() -> None:
    """Ray's processes listen on any free port, and connect from any."""
    with bound(find_address("127.0.0.1", 0)) as at:
        for host in ("127.0.0.1", "0.0.0.0"):
            with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
                other.bind((host, at.address.port))
