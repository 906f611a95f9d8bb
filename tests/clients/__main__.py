"""Prints what every client sends, what it reads, and whether that works: `python -m tests.clients`."""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from tests.clients import environment
from tests.clients.exchange import Outcome, fetch_image, hold_all
from tests.clients.libraries import PROGRAMS, Action, Program, Result
from tests.clients.payloads import read_conversations
from tests.clients.readers import OF_IMAGES
from tests.clients.service import drawing_service

Row = tuple[str, str, str, str, str]
BY_LIBRARY = "by the library"  # it, and not we, chooses what is sent, and reads the status
NOT_INSTALLED = "not installed: make clients"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--url", help="a running service; by default one is started in this process")
    url = parser.parse_args().url
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logging.disable()  # a line of each request that is refused on purpose
        os.environ["XDG_DATA_HOME"] = str(folder)  # where images are stored by default
        url = url or stack.enter_context(drawing_service())
        rows = [*map(_payload_row, hold_all(url, read_conversations()))]
        for program in PROGRAMS:
            rows += _program_rows(program, url, folder)
    _print(rows)
    return int(any(row[-1] not in ("yes", NOT_INSTALLED) for row in rows))


def _payload_row(outcome: Outcome) -> Row:
    conversation = outcome.conversation
    sends = next(request.text for request in conversation.requests if request.reads in OF_IMAGES)
    if others := len(conversation.requests) - 1:
        sends += f" and {others} more"
    statuses = ", ".join(map(str, sorted(set(outcome.statuses))))
    reads = "; ".join(dict.fromkeys(request.reads for request in conversation.requests))
    return str(conversation), sends, statuses, reads, outcome.fault or "yes"


def _program_rows(program: Program, url: str, folder: Path) -> Iterator[Row]:
    """A row for each action."""
    if program.is_installed and not environment.is_made():
        yield from ((str(action), "", "", action.reads, NOT_INSTALLED) for action in program.actions)
        return
    try:
        results = program.run(url, folder)
    except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
        yield from ((str(action), BY_LIBRARY, "", action.reads, str(error)) for action in program.actions)
        return
    with httpx2.Client() as client:
        for action in program.actions:
            fault = _fault(results, action, client)
            yield str(action), BY_LIBRARY, "", action.reads, fault or "yes"


def _fault(results: Mapping[tuple[str, str], Result], action: Action, client: httpx2.Client) -> str:
    """What is wrong with the result of an action, if anything is."""
    try:
        result = results[action.client, action.name]
        assert "failure" not in result, result["failure"]
        action.check(result, lambda link: fetch_image(client, link))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _print(rows: list[Row]) -> None:
    table = Table("client", "sends", "status", "reads", "works")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console(width=200).print(table)
    working = sum(row[-1] == "yes" for row in rows)
    sys.stdout.write(f"{working} of {len(rows)} work\n")


if __name__ == "__main__":
    sys.exit(main())
