"""The kinds of processes of a service on this machine, and their deaths."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import psutil

PROBE: dict[str, object] = {"prompt": "a red apple", "num_inference_steps": 1, "seed": 1}
PROBE_SECONDS = 5.0  # for one answer
GIVE_UP_SECONDS = 300.0
POLL_SECONDS = 0.05
# What each calls itself, in the order in which they are killed: after the last two all start again.
KINDS = {
    "denoiser": "ray::ServeReplica:safelight:Denoiser",
    "decoder": "ray::ServeReplica:safelight:VaeDecoder",
    "encoder": "ray::ServeReplica:safelight:TextEncoder",
    "gateway": "ray::ServeReplica:safelight:Gateway",
    "ledger": "ray::ServeReplica:safelight:Ledger",
    "controller": "ray::ServeController",
    "raylet": "raylet/raylet",
    "head": "gcs_server",
}


@dataclass(frozen=True)
class Death:
    """One kill and what came of it; seconds are counted from the kill."""

    kind: str
    at: float  # by time.monotonic
    way_in_seconds: float  # until a new connection was answered
    draws_seconds: float  # until an image was drawn that was asked for after the kill
    back_seconds: float  # until another process of the kind ran, and the service was ready


class CannotKill(Exception):
    """There is no such process."""


def kill(service_pid: int, url: str, kind: str) -> Death:
    """Kill the process of a kind, and wait until the service is whole again."""
    victim = _find(service_pid, KINDS[kind])
    if victim is None:
        raise CannotKill(f"no process is a {kind}")
    at = time.monotonic()
    victim.kill()
    with httpx2.Client(base_url=url, timeout=PROBE_SECONDS) as client:
        way_in = _until(lambda: _is_ok(client, "GET", "/health"), at)
        draws = _until(lambda: _is_ok(client, "POST", "/v1/images/generations"), at)

        def is_whole() -> bool:
            other = _find(service_pid, KINDS[kind])
            return other is not None and other.pid != victim.pid and _is_ok(client, "GET", "/readyz")

        back = _until(is_whole, at)
    return Death(kind, at, way_in, draws, back)


def _find(service_pid: int, title: str) -> psutil.Process | None:
    for process in psutil.Process(service_pid).children(recursive=True):
        try:
            if title in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.Error:  # it has just ended
            continue
    return None


def _is_ok(client: httpx2.Client, method: str, path: str) -> bool:
    try:
        return client.request(method, path, json=PROBE if method == "POST" else None).status_code == 200
    except httpx2.HTTPError:
        return False


def _until(condition: Callable[[], bool], since: float) -> float:
    """Seconds since `since` when `condition()` holds. Raises `CannotKill` after GIVE_UP_SECONDS."""
    while not condition():
        if time.monotonic() > since + GIVE_UP_SECONDS:
            raise CannotKill(f"the service was not whole again after {GIVE_UP_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - since
