"""What the service's own books say of a load, beside what its clients saw."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from loadtests.figures import Phase, Verdict, percentile

LATEST = 1000  # requests that the service lists, at most
ON_THE_WAY = 0.05  # seconds between client and gateway, through Serve's proxy, which are in no account of the service's
SETTLING_SECONDS = 15.0  # charges come some seconds after the answer


@dataclass(frozen=True, slots=True)
class Books:
    """Totals since the service's start, and the seconds of its `LATEST` requests that were done, the newest first."""

    images: int
    nfe: int
    device_seconds: float
    latencies: tuple[float, ...]


def read_books(url: str, key: str | None = None) -> Books | None:
    """None if the service keeps none, or does not show them to us."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.get(f"{url}/v1/accounting", params={"latest": LATEST}, headers=headers, timeout=30.0)
    if answer.status_code != 200:
        return None
    found = answer.json()
    done = tuple(each["seconds"] for each in found["latest"] if each["outcome"] == "done")
    return Books(found["images"], found["nfe"], sum(found["device_seconds"].values()), done)


def read_settled_books(url: str, key: str | None = None) -> Books | None:
    """The same once all charges are in."""
    ends, before = time.monotonic() + SETTLING_SECONDS, read_books(url, key)
    while before is not None and time.monotonic() < ends:
        time.sleep(2.0)
        after = read_books(url, key)
        if after == before:
            break
        before = after
    return before


def compare(before: Books, after: Books, phases: Sequence[Phase], last: Phase, most: float) -> list[Verdict]:
    """Totals over `phases`, and latencies of the `last` of them, by the books and by the clients.

    At most `most` apart, as a share; latencies at most `ON_THE_WAY`, if that is more.
    """
    results = [result for phase in phases for result in phase.good]
    newest = sorted(last.good, key=lambda result: result.done)[-LATEST:]
    booked = after.latencies[: len(newest)]
    totals = {
        "images": (after.images - before.images, sum(result.images for result in results)),
        "network evaluations": (after.nfe - before.nfe, sum(result.nfe for result in results)),
        "device-seconds": (
            after.device_seconds - before.device_seconds,
            sum(result.device_seconds for result in results),
        ),
    }
    latencies = {
        f"p50, {last.name}": (percentile(booked, 50), percentile([result.latency for result in newest], 50)),
        f"p95, {last.name}": (percentile(booked, 95), percentile([result.latency for result in newest], 95)),
    }
    return [
        *(_verdict(name, theirs, ours, most) for name, (theirs, ours) in totals.items()),
        *(
            _verdict(name, theirs, ours, max(most, ON_THE_WAY / ours))
            for name, (theirs, ours) in latencies.items()
        ),
    ]


def _verdict(name: str, theirs: float, ours: float, most: float) -> Verdict:
    apart = abs(theirs / ours - 1.0) if ours else float("nan")
    return Verdict(
        f"the service's account of {name}",
        f"within {most:.0%} of {ours:.4g}",
        f"{theirs:.4g}, {apart:.1%} apart",
        apart <= most,
    )
