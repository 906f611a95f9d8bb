"""Log lines: their form, that nothing forges one, and their way from any process to the command."""

import contextlib
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from safelight.service.keys.secrets import make_secret
from safelight.service.settings import Settings
from safelight.service.telemetry.logs import (
    FORMATTERS,
    MAX_BYTES,
    ROOT,
    SEND_SECONDS,
    CommandHandler,
    configure_logs,
    received_logs,
)

logger = logging.getLogger("safelight.test")
EVIL = 'a\n2026-01-01 info forged\r\u2028\x1b[2J"x" \ud83c'


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    root = logging.getLogger(ROOT)
    before = root.handlers[:], root.level, root.propagate
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def record(message: str, **fields: Any) -> logging.LogRecord:
    result = logging.LogRecord("safelight.x", logging.WARNING, __file__, 1, message, (), None)
    result.created, result.fields, result.safelight_process = 1.25, fields, "gateway"
    return result


def test_a_line_of_json() -> None:
    line = FORMATTERS["json"]().format(record("request", id="r-1", seconds=0.5, cause=None, prompt=EVIL))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.250Z",
        "level": "warning",
        "process": "gateway",
        "message": "request",
        "id": "r-1",
        "seconds": 0.5,
        "prompt": EVIL,
    }


def test_a_line_of_text() -> None:
    line = FORMATTERS["text"]().format(record("it's done", id="r-1", path="/v1/x", cause="a b", code=None))
    assert line == '1970-01-01T00:00:01.250Z warning gateway: it\'s done id=r-1 path=/v1/x cause="a b"'


@pytest.mark.parametrize("format", FORMATTERS)
def test_nothing_ends_a_line_or_reaches_a_terminal(format: str) -> None:
    """Neither in the message nor in a field, nor in a traceback."""
    evil = record(EVIL, prompt=EVIL, id=EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        evil.exc_info = sys.exc_info()
    line = FORMATTERS[format]().format(evil)
    assert line.isascii() and line.isprintable()
    assert "test_logs.py" in line


def write_lines(path: str, level: str = "info") -> None:
    configure_logs(Settings(log_socket=path, log_format="json", log_level=level), "test")
    for number in range(50):
        logger.info("line", extra={"fields": {"number": number}})
        logger.debug("debug")


def numbers(output: str) -> list[int]:
    return [json.loads(line)["number"] for line in output.splitlines()]


def test_the_command_writes_every_line_once_and_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """More lines than the socket holds, from this process and from another."""
    program = (
        "import sys, tests.service.telemetry.test_logs as t;"
        "t.write_lines(sys.argv[1]); t.write_lines(sys.argv[1])"
    )
    with received_logs(tmp_path) as path:
        subprocess.run([sys.executable, "-c", program, path], check=True, cwd=Path(__file__).parents[3])
        write_lines(path)
    assert numbers(capfd.readouterr().err) == [*range(50)] * 3
    assert not Path(path).exists()


def test_lines_without_a_command_are_written_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with received_logs(tmp_path) as path:
        configure_logs(Settings(log_socket=path, log_format="json"), "test")
        logger.info("before", extra={"fields": {"number": 1}})
    logger.info("after", extra={"fields": {"number": 2}})
    assert numbers(capfd.readouterr().err) == [1, 2]


def test_the_level_and_the_form_are_those_of_the_settings(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_level="warning"), "gateway")
    configure_logs(Settings(log_level="warning"), "decode")  # once more: not twice each line
    logger.info("no")
    logger.warning("yes")
    err = capfd.readouterr().err
    assert re.fullmatch(r"\S+Z warning decode: yes\n", err)


@pytest.mark.parametrize("format", FORMATTERS)
def test_a_line_that_is_too_long_for_the_socket_is_shortened(
    format: Literal["text", "json"], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields = {"path": "first" + "\N{RED APPLE}" * 20_000 + "last", "number": 7}
    with received_logs(tmp_path) as path:
        configure_logs(Settings(log_socket=path, log_format=format), "test")
        logger.info("x" * 500_000, extra={"fields": fields})
    [line] = capfd.readouterr().err.splitlines()
    assert len(line) < MAX_BYTES and "first" in line and "last" in line
    if format == "json":
        assert json.loads(line)["number"] == 7


def test_one_line_waits_for_a_command_that_does_not_read_and_the_next_ones_do_not(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        configure_logs(Settings(log_socket=path, log_format="json"), "test")
        [handler] = logging.getLogger(ROOT).handlers
        assert isinstance(handler, CommandHandler)
        timeouts: list[float | None] = []
        for _ in range(3):
            with contextlib.suppress(OSError):
                while True:
                    handler._send(b"x")
            assert handler._socket is not None
            timeouts.append(handler._socket.gettimeout())
        receiver.recv(1)
        handler._send(b"x")
        assert handler._socket is not None
        timeouts.append(handler._socket.gettimeout())
    assert timeouts == [0.0, 0.0, 0.0, SEND_SECONDS]


@pytest.mark.parametrize("form", FORMATTERS)
def test_what_looks_like_a_secret_is_masked_in_every_part_of_a_line(form: str) -> None:
    secret = make_secret()
    entry = record(f"cannot read {secret}", path=f"/v1/{secret}", cause=[secret], **{secret: 1})
    try:
        raise ValueError(f"no {secret}")
    except ValueError:
        entry.exc_info = sys.exc_info()
    line = FORMATTERS[form]().format(entry)
    assert secret not in line and secret[3:] not in line
    assert line.count("sk-***") == 5 and "cannot read sk-***" in line
