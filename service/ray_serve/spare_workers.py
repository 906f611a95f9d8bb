"""Spare workers of Ray, which have imported what replicas import, so that a lost replica is soon replaced.

Ray gives a new actor an idle worker that has done nothing yet, if there is one; without one it starts a
process, which then imports its libraries for seconds.
"""

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.ray_serve.preload import MARKS, ask_for_spare

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
START_SECONDS = 60.0  # after which a worker that was asked for is taken to have failed
CALL_SECONDS = 10.0
KEEP_SECONDS = 10**8  # for which Ray ends no idle worker
IDLE = "ray::IDLE"  # the title of a worker without an actor


class SpareWorkers(threading.Thread):
    """Keeps a number of spare workers on this machine.

    Args:
        number: How many.
        models: The models whose libraries they import.
        folder: The service's folder.
    """

    def __init__(self, number: int, models: Sequence[ModelInfo], folder: Path):
        super().__init__(name="spare workers", daemon=True)
        self._number = number
        self._models = tuple(models)
        self._folder = folder
        self._should_stop = threading.Event()

    def stop(self) -> None:
        """Start no further worker."""
        self._should_stop.set()
        self.join(CALL_SECONDS)

    def run(self) -> None:
        end_other_idle_workers(self._folder)
        waited, last = START_SECONDS, 0
        while not self._should_stop.wait(POLL_SECONDS):
            waited += POLL_SECONDS
            number = len(idle_workers(self._folder))
            if number != last:  # the one that was asked for is ready, or another was used
                last, waited = number, START_SECONDS
            if number < self._number and waited >= START_SECONDS:  # else one is starting
                waited = 0.0
                try:
                    ask_for_spare(self._folder, self._models)
                    start_worker()
                except Exception as error:  # of gRPC: without them a replacement takes longer
                    logger.warning("spare workers were not started: %s", type(error).__name__)


def idle_workers(folder: Path) -> list[int]:
    """The processes of the spare workers that are ready and have no actor; forgets those that have ended."""
    idle = []
    for mark in (folder / MARKS).glob("*"):
        try:
            title = " ".join(psutil.Process(int(mark.name)).cmdline())
        except psutil.NoSuchProcess:
            title = ""
        if title.startswith(IDLE):
            idle.append(int(mark.name))
        else:
            mark.unlink(missing_ok=True)
    return idle


def end_other_idle_workers(folder: Path) -> None:
    """End the idle workers that have imported nothing: Ray starts one for each core, and uses these first."""
    spare = idle_workers(folder)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.pid not in spare and " ".join(process.cmdline()).startswith(IDLE):
                process.terminate()


def start_worker() -> None:
    """Let Ray start an idle worker on this machine, by the call with which it prepares for tasks."""
    import ray

    channels: Any = import_module("ray._private.grpc_utils")
    messages: Any = import_module("ray.core.generated.node_manager_pb2")
    services: Any = import_module("ray.core.generated.node_manager_pb2_grpc")
    common: Any = import_module("ray.core.generated.common_pb2")
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    request = messages.PrestartWorkersRequest(
        language=common.PYTHON, num_workers=1, keep_alive_duration_secs=KEEP_SECONDS
    )
    with channels.init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        services.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=CALL_SECONDS)
