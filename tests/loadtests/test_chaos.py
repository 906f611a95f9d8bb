"""The chaos command: its arithmetic, its kills of stand-ins for Ray's processes, and its long form."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from loadtests import kinds
from loadtests.chaos import Chaos, _judge, report
from loadtests.kinds import KINDS, CannotKill, Death, kill
from loadtests.official_client import Sent, mix

PICTURES = mix(3)
REFERENCES = dict(zip(PICTURES, "abc", strict=True))
DEATHS = (Death("denoiser", 100.0, 0.1, 5.0, 6.0), Death("denoiser", 200.0, 0.3, 7.0, 8.0))


def sent(name: str, at: float, seconds: float, digest: str, error: str = "", retries: int = 0) -> Sent:
    return Sent(name, at, at + seconds, digest, error, retries)


def chaos(*results: Sent, records: Counter[str] | None = None) -> Chaos:
    pairs = [(PICTURES[k % 3], result) for k, result in enumerate(results)]
    return _judge(2.0, 1.6, DEATHS, pairs, REFERENCES, records or Counter())


def test_pictures_differ() -> None:
    assert len(set(mix(12))) == 12


def test_equal_bytes_billed_once_and_nothing_lost_is_a_success() -> None:
    result = chaos(
        sent("x", 90.0, 5.0, "a"), sent("y", 99.0, 9.0, "b"), sent("z", 104.0, 2.0, "c", retries=1),
        records=Counter("xyz"),
    )  # fmt: skip
    assert (result.is_ok, result.records) == (True, 3)
    table = report(result).splitlines()
    assert table[1].split() == ["denoiser", "2", "0.2", "6.0", "7.0", "2", "1", "0"]
    assert table[-1] == "3 of 3 requests answered, 0 with other bytes; 3 have a record, 0 more than one"


@pytest.mark.parametrize(
    ("result", "records"),
    [
        (sent("x", 0.0, 1.0, "b"), Counter()),
        (sent("x", 0.0, 1.0, "", "APIError: gone"), Counter()),
        (sent("x", 0.0, 1.0, "a"), Counter(x=2)),
    ],
    ids=["other bytes", "lost", "billed twice"],
)
def test_a_fault_is_no_success(result: Sent, records: Counter[str]) -> None:
    assert not chaos(result, records=records).is_ok


class Service(BaseHTTPRequestHandler):
    """Answers everything with 200, except two probes."""

    refusals = 0

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        type(self).refusals -= 1
        self.send_response(503 if self.refusals >= 0 else 200)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Service.refusals = 2
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def replica(title: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([title, "600"], executable="/bin/sleep")


def test_a_kill_is_over_when_another_process_of_the_kind_runs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = "ray::StandIn:VaeDecoder"  # a service of another test may run below this process
    monkeypatch.setitem(KINDS, "decoder", title)
    victim, others = replica(title), list[subprocess.Popen[bytes]]()
    probe = kinds._is_ok

    def start_another(*args: object) -> bool:
        is_ok = bool(probe(*args))  # type: ignore[arg-type]
        if args[2] == "/v1/images/generations" and is_ok:
            others.append(replica(title))
        return is_ok

    monkeypatch.setattr(kinds, "_is_ok", start_another)
    death = kill(os.getpid(), url, "decoder")
    assert victim.wait() == -9
    [other] = others
    assert psutil.Process(other.pid).is_running()
    assert 0.0 < death.way_in_seconds <= death.draws_seconds <= death.back_seconds
    assert Service.refusals < 0
    other.kill()
    other.wait()
    assert kinds._find(os.getpid(), KINDS["decoder"]) is None
    with pytest.raises(CannotKill):
        kill(os.getpid(), url, "decoder")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_kind_of_process_is_killed_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.chaos", "--requests", "60", "--kills", "1"]
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    deaths = json.loads((tmp_path / "chaos.json").read_text())["deaths"]
    assert [death["kind"] for death in deaths] == list(KINDS)
