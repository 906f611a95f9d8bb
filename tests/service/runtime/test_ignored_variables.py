"""Environment variables that Kubernetes, Docker or an empty value make."""

import pytest

from safelight.service.runtime.ignored_variables import describe_ignored, is_ignored

OF_A_SERVICE = {
    "SAFELIGHT_SERVICE_HOST": "10.43.1.39",
    "SAFELIGHT_SERVICE_PORT": "8000",
    "SAFELIGHT_SERVICE_PORT_HTTP": "8000",
    "SAFELIGHT_PORT": "tcp://10.43.1.39:8000",
    "SAFELIGHT_PORT_8000_TCP": "tcp://10.43.1.39:8000",
    "SAFELIGHT_PORT_8000_TCP_PROTO": "tcp",
    "SAFELIGHT_PORT_8000_TCP_PORT": "8000",
    "SAFELIGHT_PORT_8000_TCP_ADDR": "10.43.1.39",
}


@pytest.mark.parametrize(
    "value", ["", "  ", "tcp://10.43.1.39:8000", "udp://10.0.0.1:53", "tcp://[fd00::1]:80", "sctp://a:1"]
)
def test_a_value_that_sets_nothing(value: str) -> None:
    assert is_ignored(value)


@pytest.mark.parametrize(
    "value", ["8000", "0", "tcp", "http://localhost:4318/v1/traces", "https://a:1", "tcp://a", "tcp:/8000"]
)
def test_a_value_that_sets_something(value: str) -> None:
    assert not is_ignored(value)


def test_all_variables_of_a_service_are_named() -> None:
    text = describe_ignored(OF_A_SERVICE | {"SAFELIGHT_MODEL": "tiny", "PATH": ""}, "SAFELIGHT_")
    names, _, why = text.partition(" (")
    assert names.split(", ") == sorted(OF_A_SERVICE) and "Kubernetes" in why


def test_empty_variables_are_named_apart() -> None:
    assert describe_ignored({"SAFELIGHT_HOST": " ", "safelight_port": ""}, "SAFELIGHT_") == (
        "SAFELIGHT_HOST, safelight_port (empty)"
    )


def test_variables_that_count_are_not_named() -> None:
    mine = {"SAFELIGHT_PORT": "8000", "SAFELIGHT_SERVICE_HOST": "a"}
    assert describe_ignored(mine, "SAFELIGHT_") == ""
