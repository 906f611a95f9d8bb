"""Prints what every client sends, what it reads, and whether that works: `python -m tests.clients`."""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from tests.clients import environment
from tests.clients.exchange import Outcome, fetch_image, hold_all
from tests.clients.libraries import PROGRAMS, Program
from tests.clients.payloads import read_conversations
from tests.clients.readers import OF_IMAGES
from tests.clients.service import drawing_service

Row = tuple[str, str, str, str, str]
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
    """A row for each action; the library, and not we, chooses what it sends and reads the status."""
    if program.is_installed and not environment.is_made():
        yield from ((str(action), "", "", action.reads, NOT_INSTALLED) for action in program.actions)
        return
    results = program.run(url, folder)
    with httpx2.Client() as client:
        for action in program.actions:
            try:
                result = results[action.client, action.name]
                assert "failure" not in result, result["failure"]
                action.check(result, lambda link: fetch_image(client, link))
                works = "yes"
            except Exception as error:
                works = f"{type(error).__name__}: {error}"
            yield str(action), "by the library", "", action.reads, works


def _print(rows: list[Row]) -> None:
    table = Table("client", "sends", "status", "reads", "works")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console(width=200).print(table)
    working = sum(row[-1] == "yes" for row in rows)
    sys.stdout.write(f"{working} of {len(rows)} work\n")


if __name__ == "__main__":
    sys.exit(main())
