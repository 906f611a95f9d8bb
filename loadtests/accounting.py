"""Compares what the service reports in `/v1/accounting` with what its clients saw."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2

from loadtests.results import Phase, percentile
from loadtests.verdicts import Verdict

LATEST = 1000  # requests that the service lists, at most
TRANSPORT_SECONDS = 0.05  # between client and gateway, through Serve's proxy; the service cannot count these
SETTLING_SECONDS = 15.0  # usage events arrive some seconds after the answer


@dataclass(frozen=True, slots=True)
class AccountingSnapshot:
    """Totals since the service started, and the latencies in seconds of its latest requests, newest first."""

    images: int
    nfe: int
    device_seconds: float
    latencies: tuple[float, ...]


def read_snapshot(url: str, key: str | None = None) -> AccountingSnapshot | None:
    """The service's totals; None if it keeps none, or does not show them to this client."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = httpx2.get(f"{url}/v1/accounting", params={"latest": LATEST}, headers=headers, timeout=30.0)
    if response.status_code != 200:
        return None
    report = response.json()
    latencies = tuple(record["seconds"] for record in report["latest"] if record["outcome"] == "done")
    return AccountingSnapshot(
        report["images"], report["nfe"], sum(report["device_seconds"].values()), latencies
    )


def read_settled_snapshot(url: str, key: str | None = None) -> AccountingSnapshot | None:
    """The service's totals once all usage events have arrived: when two snapshots in a row are equal."""
    ends, before = time.monotonic() + SETTLING_SECONDS, read_snapshot(url, key)
    while before is not None and time.monotonic() < ends:
        time.sleep(2.0)
        after = read_snapshot(url, key)
        if after == before:
            break
        before = after
    return before


def compare(
    before: AccountingSnapshot,
    after: AccountingSnapshot,
    phases: Sequence[Phase],
    last: Phase,
    max_difference: float,
) -> list[Verdict]:
    """Verdicts on whether the service's totals and latencies equal those that its clients measured.

    Args:
        before: the service's totals before the first phase.
        after: its totals after the last one.
        phases: all phases in between.
        last: the last of them.
        max_difference: largest relative difference. Latencies may differ by `TRANSPORT_SECONDS`, if more.
    """
    results = [result for phase in phases for result in phase.good]
    newest = sorted(last.good, key=lambda result: result.done)[-LATEST:]
    service_latencies = after.latencies[: len(newest)]
    client_latencies = [result.latency for result in newest]
    totals = {
        "images": (after.images - before.images, sum(result.images for result in results)),
        "network evaluations": (after.nfe - before.nfe, sum(result.nfe for result in results)),
        "device-seconds": (
            after.device_seconds - before.device_seconds,
            sum(result.device_seconds for result in results),
        ),
    }
    verdicts = [
        _verdict(name, by_service, by_clients, max_difference)
        for name, (by_service, by_clients) in totals.items()
    ]
    for percent in (50, 95):
        by_service = percentile(service_latencies, percent)
        by_clients = percentile(client_latencies, percent)
        limit = max(max_difference, TRANSPORT_SECONDS / by_clients)
        verdicts.append(_verdict(f"latency p{percent}, {last.name}", by_service, by_clients, limit))
    return verdicts


def _verdict(name: str, by_service: float, by_clients: float, max_difference: float) -> Verdict:
    difference = abs(by_service / by_clients - 1.0) if by_clients else float("nan")
    return Verdict(
        f"/v1/accounting against clients: {name}",
        f"within {max_difference:.0%} of {by_clients:.4g}",
        f"{by_service:.4g} ({difference:.1%} apart)",
        difference <= max_difference,
    )
