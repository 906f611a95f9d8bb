"""Measures what keeping the accounts costs the ledger's process: `python -m tests.bench.accounts [URL]`.

In a new SQLite file, or in the database of PostgreSQL at URL. A round is the report of a gateway with some
records, and those of three stages with their usage, sent at the same time. Prints a Markdown table for
docs/accounts.md.
"""

import asyncio
import statistics
import sys
import tempfile
import time

from safelight.service.backend import STAGES
from safelight.service.database.connection import Database
from safelight.service.database.locations import find_database
from safelight.service.database.migrate import migrate
from safelight.service.settings import Settings
from safelight.service.usage.events import UsageReport
from safelight.service.usage.storage import LedgerStorage
from safelight.service.usage.stored_ledger import StoredLedger
from tests.service.usage.test_ledger import event, gateway_report, record, stage_report

ROUNDS = {1: 100, 10: 100, 100: 20}  # by the requests in a round
KEYS = 10
SCRAPES = 20


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(sys.argv[1] if len(sys.argv) > 1 else folder))


async def measure(place: str) -> None:
    location = find_database(place)
    await migrate(location)
    ledger = StoredLedger(Settings(), LedgerStorage(Database(location), "bench"))
    await ledger.receive(gateway_report(0))
    print("| requests in a round | ms CPU a round | ms until acknowledged, p50 | max |")
    print("|---|---|---|---|")
    for size, rounds in ROUNDS.items():
        cpu, seconds = await run_rounds(ledger, size, rounds)
        p50, longest = statistics.median(seconds), max(seconds)
        print(f"| {size} | {1e3 * cpu / rounds:.1f} | {1e3 * p50:.0f} | {1e3 * longest:.0f} |")
    started = time.process_time()
    for _ in range(SCRAPES):
        await ledger.snapshot()
    print(f"\na scrape: {1e3 * (time.process_time() - started) / SCRAPES:.1f} ms CPU")
    ledger.stop()
    started = time.process_time()
    state = await LedgerStorage(Database(location), "bench").take_over()
    print(f"reading {len(state.entries)} records: {time.process_time() - started:.2f} s CPU")


async def run_rounds(ledger: StoredLedger, size: int, rounds: int) -> tuple[float, list[float]]:
    """The processor seconds of all rounds, and the seconds of each."""
    seconds: list[float] = []
    cpu = time.process_time()
    for number in range(rounds):
        started = time.perf_counter()
        await asyncio.gather(*map(ledger.receive, reports(size, number)))
        seconds.append(time.perf_counter() - started)
    return time.process_time() - cpu, seconds


def reports(size: int, number: int) -> list[UsageReport]:
    """A gateway's report of `size` requests, and the stages' of their images."""
    ids = [f"{size}-{number}-{image}" for image in range(size)]
    records = [record(name, ended=time.time(), key=f"key {k % KEYS}") for k, name in enumerate(ids)]
    usage = [event(name, 0.125) for name in ids]
    return [
        gateway_report(number, *records, source=f"gateway {size}"),
        *(
            stage_report(number, *usage, stage=stage, source=f"{stage} {size}", busy=size * (number + 1.0))
            for stage in STAGES
        ),
    ]


if __name__ == "__main__":
    main()
