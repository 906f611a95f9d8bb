"""Log lines of every process of the service, each whole and on a line of its own, as text or JSON.

What looks like the secret of an API key is masked in all of them, wherever it comes from.

Under `safelight serve` the processes send their lines to the command, which writes them to standard error. A
process that cannot reach the command, or has none, as on a cluster, writes to its own standard error, which
Ray keeps in the session's folder.
"""

import json
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safelight.service.keys.secrets import mask_secrets
from safelight.service.settings import Settings

ROOT = "safelight"  # the logger above all of ours
MAX_BYTES = 60_000  # of a line; a socket's datagram has a limit
SHORT_VALUE = 1000  # characters of a value in a line that would be longer
SEND_SECONDS = 1.0  # that a line waits for the command before it goes to the process's own output
END_SECONDS = 5.0  # that the command waits for the last lines to be written
PLAIN_VALUE = re.compile(r"[A-Za-z0-9._:/+-]+")


class TextFormatter(logging.Formatter):
    """`TIME LEVEL PROCESS: MESSAGE NAME=VALUE ...`; a value with other than plain characters is JSON."""

    def format(self, record: logging.LogRecord) -> str:
        entry = _entry(record)
        head = f"{entry.pop('time')} {entry.pop('level')} {entry.pop('process')}: "
        message = json.dumps(entry.pop("message"))[1:-1].replace('\\"', '"')
        values = (f"{name}={_text(value)}" for name, value in entry.items())
        return mask_secrets(" ".join([head + message, *values]))


class JsonFormatter(logging.Formatter):
    """One JSON object in ASCII, so that no character of a value can end the line."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_secrets(json.dumps(_entry(record), default=str))


FORMATTERS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


class CommandHandler(logging.Handler):
    """Sends lines to the command at the socket `path`; writes those that do not get there to stderr.

    After one that did not, lines no longer wait until one has got there: a command whose output nobody reads
    must not delay every request.
    """

    def __init__(self, path: str):
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            try:
                self._send(line.encode())
            except OSError:  # the command has ended, or does not read
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        super().close()

    def _send(self, line: bytes) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(SEND_SECONDS)
        try:
            self._socket.sendto(line, self._path)
        except OSError:
            self._socket.settimeout(0.0)
            raise
        self._socket.settimeout(SEND_SECONDS)


def configure_logs(settings: Settings, process: str) -> None:
    """Send this process's log lines where the settings say; `process` names it in each line."""
    handler = CommandHandler(settings.log_socket) if settings.log_socket else logging.StreamHandler()
    handler.setFormatter(FORMATTERS[settings.log_format]())
    handler.addFilter(_Named(process))
    logger = logging.getLogger(ROOT)
    for previous in logger.handlers[:]:
        logger.removeHandler(previous)
        previous.close()
    logger.addHandler(handler)
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False  # else Ray's own handlers would write each line once more


@contextmanager
def received_logs(folder: Path) -> Iterator[str]:
    """Write the lines that other processes send to this process's stderr; yields the path of the socket.

    The socket is made in `folder`. At the end, every line that was sent before is written, unless stderr
    takes none for `END_SECONDS`.
    """
    path = str(folder / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        thread = threading.Thread(target=_relay, args=(receiver,), name="logs", daemon=True)
        thread.start()
        try:
            yield path
        finally:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(END_SECONDS)
                sender.sendto(b"", path)
                thread.join(END_SECONDS)
            os.unlink(path)


def _relay(receiver: socket.socket) -> None:
    """Write each line until an empty one comes. Python's own stderr may be redirected meanwhile."""
    while line := receiver.recv(MAX_BYTES + 1):
        stream = sys.__stderr__
        if stream is not None:
            try:
                stream.write(f"{line.decode(errors='replace')}\n")
                stream.flush()
            except (OSError, ValueError):  # nobody reads, or it is closed: the service goes on
                continue


class _Named(logging.Filter):
    """Adds the process's name to each record."""

    def __init__(self, process: str):
        super().__init__()
        self._process = process

    def filter(self, record: logging.LogRecord) -> bool:
        record.safelight_process = self._process
        return True


def _entry(record: logging.LogRecord) -> dict[str, Any]:
    """The parts of a line, in order; `extra={"fields": {...}}` of a call adds its own."""
    time = datetime.fromtimestamp(record.created, UTC)
    entry: dict[str, Any] = {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "process": getattr(record, "safelight_process", record.processName),
        "message": record.getMessage(),
    }
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    entry |= {name: value for name, value in fields.items() if value is not None}
    if record.exc_info:
        entry["traceback"] = logging.Formatter().formatException(record.exc_info)
    if len(json.dumps(entry, default=str)) > MAX_BYTES:
        return {name: _shortened(value) for name, value in entry.items()}
    return entry


def _shortened(value: Any) -> Any:
    """`value`, a long text without its middle. It is cut before it is written, so that JSON stays whole."""
    if not isinstance(value, str) or len(value) <= SHORT_VALUE:
        return value
    return f"{value[: SHORT_VALUE // 2]} ... {value[-SHORT_VALUE // 2 :]}"


def _text(value: Any) -> str:
    text = str(value)
    return text if PLAIN_VALUE.fullmatch(text) else json.dumps(text)
