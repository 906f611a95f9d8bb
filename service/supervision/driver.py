"""The process in which Ray's driver runs: starts the service and stops it, as `Supervisor` says.

    python -m safelight.service.supervision.driver

On stdin come the pickled settings, then a line `stop`; the end of stdin means that the supervisor is dead.
Each line on stdout is an `Event` as JSON. What Ray prints goes to stderr.
"""

import json
import os
import pickle
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from functools import partial
from typing import BinaryIO, Literal

from safelight.service.local import (
    APPLICATION,
    CannotServe,
    ProgressCallback,
    deploy_service,
    spare_workers,
    start_ray,
    stop_service,
)
from safelight.service.runtime.addresses import BadAddress
from safelight.service.runtime.causes import first_cause
from safelight.service.settings import Settings
from safelight.service.supervision.processes import kill_all
from safelight.service.telemetry.logs import configure_logs

STOP = b"stop\n"
BEAT_SECONDS = 5.0
JOIN_SECONDS = 1.0
FAILED = 1
FAILURES = ("UNHEALTHY", "DEPLOY_FAILED")  # of Serve's status of a deployment
GONE = "Ray has given up this machine: its raylet does not answer"

Kind = Literal["progress", "started", "ready", "failed", "beat", "failing", "lost"]


@dataclass(frozen=True)
class Event:
    """What the driver tells.

    Attributes:
        kind: `progress`, of the start and the stop; `started`: Ray is; `ready`: the service is; `failed`: it
            did not start. Later `beat`: Ray and Serve answer; `failing`: they answer, and a stage cannot be
            started again; `lost`: the service will not recover.
        text: For a person.
    """

    kind: Kind
    text: str = ""


class Events:
    """Writes events, from any thread."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, kind: Kind, text: str = "") -> None:
        with self._lock:
            self._stream.write(json.dumps(asdict(Event(kind, text))).encode() + b"\n")
            self._stream.flush()


def main() -> int:
    """Run the service until the supervisor says stop; returns the exit status."""
    commands, stream = _take_standard_streams()
    events, should_stop = Events(stream), threading.Event()
    settings: Settings = pickle.load(commands)
    configure_logs(settings, "driver")
    threading.Thread(target=_obey, args=(commands, should_stop), daemon=True).start()
    report_progress: ProgressCallback = partial(events.send, "progress")
    try:
        start_ray(settings, report_progress)
        events.send("started")
        url = deploy_service(settings, report_progress)
    except (CannotServe, BadAddress) as error:
        events.send("failed", str(error))  # the supervisor ends the processes
        return FAILED
    except Exception as error:  # Ray raises plain `Exception`s, also when its processes die
        events.send("failed", f"{type(error).__name__}: {first_cause(str(error) or 'no reason given')}")
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd sends it to all processes of a service
    events.send("ready", url)
    health = threading.Thread(target=_report_health, args=(events, should_stop), daemon=True)
    health.start()
    with spare_workers(settings):
        should_stop.wait()
    health.join(JOIN_SECONDS)  # Serve's status would start Ray anew after its end
    stop_service(settings, report_progress)
    return 0


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes from and to the supervisor; afterwards stdin is empty, and stdout is stderr.

    Otherwise Ray and its processes would have them too.
    """
    commands, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, events


def _obey(commands: BinaryIO, should_stop: threading.Event) -> None:
    while line := commands.readline():
        if line == STOP:
            should_stop.set()
    kill_all()  # nobody else will: the supervisor is dead
    os._exit(FAILED)


def _report_health(events: Events, should_stop: threading.Event) -> None:
    """Tell at intervals that Ray and Serve answer; tells nothing while they do not."""
    while not should_stop.wait(BEAT_SECONDS):
        try:
            events.send(*_health(should_stop))
        except OSError:  # the supervisor is dead
            return
        except Exception:  # Ray raises plain `Exception`s; it may answer again
            continue


def _health(should_stop: threading.Event) -> tuple[Kind, str]:
    import ray
    from ray import serve

    if not any(node["Alive"] for node in ray.nodes()):
        return "lost", GONE
    if should_stop.is_set():
        return "beat", ""
    application = serve.status().applications.get(APPLICATION)
    stages = application.deployments.items() if application else ()
    for name, stage in stages:
        if stage.status in FAILURES and "failed to start" in stage.message:
            return "failing", f"{name} cannot be started again: {first_cause(stage.message)}"
    return "beat", ""


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Ray's own threads must not keep it
