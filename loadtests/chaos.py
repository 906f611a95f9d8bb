"""`python -m loadtests.chaos`: kills every kind of process of a service under load, and counts what is lost.

It starts a service and measures its capacity. Then it sends images at a share of that through the official
client, while each kind of process is killed in turn. Every image is compared with the one that was drawn
before the kills. The exit status is 1 if a request was lost, an image differs, or one was billed twice.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import httpx2

from loadtests.kinds import KINDS, CannotKill, Death, kill
from loadtests.official_client import (
    Picture,
    Sent,
    draw_at_once,
    draw_at_rate,
    draw_one_by_one,
    make_client,
    mix,
)
from loadtests.service import CannotStart, Service, keep_loopback_direct, service
from loadtests.tables import Table

NUM_PICTURES = 12
NUM_AT_ONCE = 24  # from which the capacity is estimated
RECORDS = 1000  # that the accounting lists at most
MISSED, NOT_MEASURED = 1, 2


@dataclass(frozen=True)
class Chaos:
    """What was measured."""

    capacity: float  # images a second
    rate: float
    deaths: tuple[Death, ...]
    sent: tuple[Sent, ...]
    wrong: int  # images whose bytes differ
    billed_twice: int  # requests with more than one record of a finished image
    records: int  # of these requests

    @property
    def lost(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.error]

    @property
    def is_ok(self) -> bool:
        return not self.lost and not self.wrong and not self.billed_twice


def main() -> int:
    """Run the command; returns the exit status."""
    args = _parser().parse_args()
    keep_loopback_direct()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    data = {"XDG_DATA_HOME": str(folder.resolve() / "data"), "SAFELIGHT_KEEP_ACCOUNTS": "always"}
    try:
        with service(args.model, folder / "service.log", data) as running:
            chaos = asyncio.run(_run(running, args))
    except (CannotStart, CannotKill, httpx2.HTTPError) as error:
        sys.stderr.write(f"loadtests.chaos: {error}\n")
        return NOT_MEASURED
    (folder / "chaos.json").write_text(json.dumps(asdict(chaos), indent=1))
    print(report(chaos))
    return 0 if chaos.is_ok else MISSED


async def _run(running: Service, args: argparse.Namespace) -> Chaos:
    assert running.pid is not None
    pictures = mix(NUM_PICTURES)
    async with make_client(running.url) as client:
        undisturbed = await draw_one_by_one(client, pictures)
        if faults := [sent.error for sent in undisturbed if sent.error]:
            raise CannotStart(f"an undisturbed image failed: {faults[0]}")
        references = {picture: sent.digest for picture, sent in zip(pictures, undisturbed, strict=True)}
        started = time.monotonic()
        await draw_at_once(client, [pictures[k % NUM_PICTURES] for k in range(NUM_AT_ONCE)])
        capacity = NUM_AT_ONCE / (time.monotonic() - started)
        stop = asyncio.Event()
        load = asyncio.ensure_future(
            draw_at_rate(client, pictures, args.load * capacity, args.requests, stop)
        )
        deaths: list[Death] = []
        try:
            for kind in [kind for kind in args.kinds for _ in range(args.kills)]:
                await asyncio.sleep(args.pause)
                deaths.append(await asyncio.to_thread(kill, running.pid, running.url, kind))
                print(death_line(deaths[-1]), flush=True)
        finally:
            stop.set()
        results = await load
    await asyncio.sleep(args.pause)  # in which the last records arrive
    records = _records(running.url)
    return _judge(capacity, args.load * capacity, deaths, results, references, records)


def _judge(
    capacity: float,
    rate: float,
    deaths: Sequence[Death],
    results: Sequence[tuple[Picture, Sent]],
    references: Mapping[Picture, str],
    records: Mapping[str, int],
) -> Chaos:
    return Chaos(
        capacity=capacity,
        rate=rate,
        deaths=tuple(deaths),
        sent=tuple(sent for _, sent in results),
        wrong=sum(bool(sent.digest) and sent.digest != references[picture] for picture, sent in results),
        billed_twice=sum(records.get(sent.request_id, 0) > 1 for _, sent in results),
        records=sum(sent.request_id in records for _, sent in results),
    )


def _records(url: str) -> Counter[str]:
    """How many finished images of each request the accounting lists."""
    answer = httpx2.get(f"{url}/v1/accounting", params={"latest": RECORDS}, timeout=30.0)
    answer.raise_for_status()
    return Counter(record["request_id"] for record in answer.json()["latest"] if record["outcome"] == "done")


def death_line(death: Death) -> str:
    return (
        f"{death.kind}: the way in after {death.way_in_seconds:.1f} s, an image after "
        f"{death.draws_seconds:.1f} s, whole after {death.back_seconds:.1f} s"
    )


def report(chaos: Chaos) -> str:
    """The table of kinds, and what became of the requests."""
    rows = []
    for kind in dict.fromkeys(death.kind for death in chaos.deaths):
        deaths = [death for death in chaos.deaths if death.kind == kind]
        affected = [sent for death in deaths for sent in chaos.sent if _is_affected(sent, death)]
        rows.append(
            (
                kind,
                str(len(deaths)),
                f"{median(death.way_in_seconds for death in deaths):.1f}",
                f"{median(death.draws_seconds for death in deaths):.1f}",
                f"{median(death.back_seconds for death in deaths):.1f}",
                str(len(affected)),
                str(sum(sent.retries > 0 for sent in affected)),
                str(sum(bool(sent.error) for sent in affected)),
            )
        )
    headings = ("process", "kills", "way in s", "image s", "whole s", "in flight", "sent again", "lost")
    answered = len(chaos.sent) - len(chaos.lost)
    lines = [
        Table("", headings, rows).as_text(),
        f"capacity {chaos.capacity:.2f} images a second, load {chaos.rate:.2f}",
        f"{answered} of {len(chaos.sent)} requests answered, {chaos.wrong} with other bytes; "
        f"{chaos.records} have a record, {chaos.billed_twice} more than one",
    ]
    lines += [f"lost: {sent.request_id}: {sent.error}" for sent in chaos.lost]
    return "\n".join(lines)


def _is_affected(sent: Sent, death: Death) -> bool:
    """Whether the request was under way at the kill, or sent before the service drew again."""
    return sent.sent_at < death.at + death.draws_seconds and sent.ended_at > death.at


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.chaos", description=__doc__)
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--requests", type=int, default=500, help="at least; default 500")
    parser.add_argument("--kills", type=int, default=3, help="of each kind; default 3")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity; default 0.8")
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between two kills; default 10")
    parser.add_argument("--output", default="build/chaos", help="folder of log and record")
    return parser


if __name__ == "__main__":
    sys.exit(main())
