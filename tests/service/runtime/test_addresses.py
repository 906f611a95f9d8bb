"""Addresses of hosts, and ports that are kept free for a server."""

import socket
import sys

import pytest

from safelight.service.runtime.addresses import Address, BadAddress, find_address, reserved

V4, V6 = socket.AF_INET, socket.AF_INET6
has_v6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a port for another socket")


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
    with reserved(find_address(host, 0)) as first, reserved(find_address(host, 0)) as second:
        assert first.port != second.port != 0
        with pytest.raises(BadAddress, match="in use; choose another with --port"), reserved(first):
            pytest.fail("reserved twice")


def test_a_port_in_use_and_an_address_of_another_machine_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = find_address("127.0.0.1", server.getsockname()[1])
        refusal = f"port {address.port} of 127.0.0.1: Address already in use"
        with pytest.raises(BadAddress, match=refusal), reserved(address):
            pytest.fail("reserved")
    elsewhere = find_address("203.0.113.7", 0)
    with pytest.raises(BadAddress, match="choose another with --host"), reserved(elsewhere):
        pytest.fail("reserved")


def serve_once(address: Address) -> socket.socket:
    """A listening socket as Ray Serve's proxy makes it."""
    server = socket.socket(address.family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind((address.host, address.port))
    server.listen()
    return server


def exchange(address: Address) -> None:
    """A connection that the server closes first, whose port lingers."""
    with serve_once(address) as server, socket.create_connection((address.host, address.port)) as client:
        connection, _ = server.accept()
        connection.close()
        assert client.recv(1) == b""


@on_linux
def test_a_server_that_shares_ports_listens_on_a_reserved_one_again_and_again() -> None:
    with reserved(find_address("127.0.0.1", 0)) as address:
        exchange(address)
        exchange(address)


@on_linux
def test_a_port_of_a_service_that_has_just_ended_can_be_used() -> None:
    with reserved(find_address("127.0.0.1", 0)) as address:
        exchange(address)
    with reserved(address) as again:
        exchange(again)
        with pytest.raises(BadAddress), reserved(address):
            pytest.fail("reserved twice")


@on_linux
def test_the_kernel_gives_a_reserved_port_to_no_other_socket() -> None:
    """Ray's processes listen on any free port, and connect from any."""
    with reserved(find_address("127.0.0.1", 0)) as address:
        for host in ("127.0.0.1", "0.0.0.0"):
            with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
                other.bind((host, address.port))
