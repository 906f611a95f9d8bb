"""Asks a service on this machine whether it is ready, whatever proxies the environment names."""

import http.client
import json
from dataclasses import dataclass

from safelight.service.runtime.addresses import Address

ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class ReadinessAnswer:
    """What a service answered to one question whether it is ready.

    Attributes:
        is_ready: Whether it can generate images.
        is_final: Whether it never will: the model cannot generate images.
        text: Why it is not ready, for a person.
        is_reached: Whether anything answered.
    """

    is_ready: bool
    is_final: bool
    text: str
    is_reached: bool = True


def ask_readiness(address: Address, seconds: float = ANSWER_SECONDS) -> ReadinessAnswer:
    """Ask /readyz. A service that does not answer within `seconds` is not ready."""
    # Of all HTTP clients this one has no notion of a proxy.
    connection = http.client.HTTPConnection(address.reachable_host, address.port, timeout=seconds)
    try:
        connection.request("GET", "/readyz", headers={"Host": "localhost"})
        response = connection.getresponse()
        return read_answer(response.status, response.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        text = f"no answer from {address.url}: {error or type(error).__name__}"
        return ReadinessAnswer(False, False, text, is_reached=False)
    finally:
        connection.close()


def read_answer(status: int, body: str) -> ReadinessAnswer:
    """What an HTTP answer of /readyz says; while the gateway starts, Ray Serve answers in its place."""
    if status == 200:
        return ReadinessAnswer(True, False, "ready")
    try:
        report = json.loads(body)
        missing = ", ".join(name for name, stage in report["stages"].items() if not stage["ready"])
        reason = report["reason"] or (f"no {missing}" if missing else "no warm-up image yet")
        return ReadinessAnswer(False, bool(report["failed"]), str(reason))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ReadinessAnswer(False, False, f"status {status}: {body.strip()[:200]}")
