"""Runs the service on one machine, on a Ray instance that is started and stopped with it."""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.served_model import find_served_model
from safelight.service.settings import Settings, replica_range
from safelight.service.telemetry.logs import received_logs

APPLICATION = "safelight"
READY_SECONDS = 300.0
# Ray's time limits at start are short for a busy machine or a cold disk.
RAY_ATTEMPTS = 3
POLL_SECONDS = 0.1
FLOAT32_BYTES = 4
MIN_STORE_BYTES = 128 << 20
# Share of the object store beyond which Ray moves objects to disk.
SPILLING_SHARE = 0.8
SHARED_MEMORY = Path("/dev/shm")  # where Ray keeps the object store
# Defaults for the processes of the service; variables that are set already stay.
ENVIRONMENT = {
    # Ray's default of 15 would let any other process take the CPU from the stages.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A replica that reserves no GPU may use the GPUs of this machine.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "HF_HUB_OFFLINE": "1",
    # Serve's proxy uses and answers any id that a client sends; this makes it use ours.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "safelight.service.http.request_ids:proxy_middlewares",
}
ERROR_LINE = re.compile(r"^\S*(?:Error|Exception): (.+)$", re.MULTILINE)

ProgressCallback = Callable[[str], None]


class CannotServe(Exception):
    """The service did not start; the message says why."""


@contextlib.contextmanager
def running_service(settings: Settings, report_progress: ProgressCallback) -> Iterator[str]:
    """Start the service, yield its URL when it is ready, and stop it.

    Ctrl-C and SIGTERM raise `KeyboardInterrupt`. Inside, stdout is stderr: Ray reports dead workers on
    stdout, which is reserved for the command's output. Raises `CannotServe`.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with received_logs() as log_socket, contextlib.redirect_stdout(sys.stderr):
        settings = settings.updated(log_socket=settings.log_socket or log_socket)
        try:
            _start_ray(report_progress, object_store_bytes(settings))
            report_progress(f"starting the stages, {settings.stages}")
            _deploy(settings)
            report_progress("drawing the warm-up image")
            wait_until_ready(url_of(settings))
            yield url_of(settings)
        finally:
            report_progress("finishing the images in flight")
            _drain(settings.shutdown_seconds)
            report_progress("stopping")
            _stop()


def try_ray() -> str:
    """Start Ray, run a task, stop Ray, and return its version. Raises `CannotServe`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.redirect_stdout(sys.stderr):
        import ray

        try:
            _start_ray(lambda text: None, MIN_STORE_BYTES)
            version: str = ray.get(
                ray.remote(num_cpus=0)(lambda: ray.__version__).remote(), timeout=READY_SECONDS
            )
            return version
        except CannotServe:
            raise
        except Exception as error:  # Ray raises plain `Exception`s
            raise CannotServe(f"Ray started, and then failed: {error}") from None
        finally:
            ray.shutdown()


def object_store_bytes(settings: Settings, shared_memory: Path = SHARED_MEMORY) -> int:
    """The size of Ray's object store: for all images in flight, as far as this machine's memory goes.

    Beyond it Ray moves objects to disk, which is slower. Memory is taken as it is used, not at the start.
    """
    model = find_served_model(settings)
    _, num_gateways = replica_range("gateway_replicas", settings.gateway_replicas)
    needed = num_gateways * settings.max_pictures * _image_bytes(model, settings.stages == "split")
    try:
        available = shutil.disk_usage(shared_memory).free
    except OSError:  # not Linux
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 3
    return max(MIN_STORE_BYTES, min(math.ceil(needed / SPILLING_SHARE), available * 9 // 10))


def _image_bytes(model: ModelInfo, is_split: bool) -> int:
    """The most that one image leaves in the object store until it is answered.

    Between split stages these are the states of its two texts and its latents; in any layout its file, which
    is at most its pixels.
    """
    profile = model_profile(model)
    pixels = max(width * height for width, height in model.sizes)
    file = 3 * pixels
    if not is_split:
        return file
    latents = FLOAT32_BYTES * profile.latent_channels * pixels // profile.scale**2
    return 2 * profile.text_bytes + latents + file


def _start_ray(report_progress: ProgressCallback, store_bytes: int) -> None:
    import ray

    report_progress("starting Ray")
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # the exception is reported instead
    for attempts_left in reversed(range(RAY_ATTEMPTS)):
        try:
            _init_ray(store_bytes)
            break
        except Exception as error:  # Ray raises plain `Exception`s
            ray.shutdown()
            if not attempts_left:
                raise CannotServe(f"Ray did not start: {error}") from error
            report_progress("Ray did not start; trying again")
    signal.signal(signal.SIGTERM, _interrupt)  # replaces the handler of ray.init


def _init_ray(store_bytes: int) -> None:
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=store_bytes,
    )


def _stop() -> None:
    import ray
    from ray import serve

    for signal_number in (signal.SIGINT, signal.SIGTERM):  # a second signal must not interrupt the stop
        signal.signal(signal_number, signal.SIG_IGN)
    with (
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        if ray.is_initialized():  # else Serve would start Ray in order to shut it down
            serve.shutdown()
        ray.shutdown()


def _drain(seconds: float) -> None:
    """Let the gateway finish the images in flight; another Ctrl-C ends the wait."""
    from ray import serve

    # A service that did not start has no application to drain.
    with contextlib.suppress(Exception, KeyboardInterrupt):
        serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=seconds)


def _deploy(settings: Settings) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from safelight.service.app import build_app

    try:
        # Longer than the gateway's own limits, because Serve answers a timeout in plain text.
        http = HTTPOptions(
            host=settings.host,
            port=settings.port,
            request_timeout_s=settings.body_seconds + settings.deadline_seconds + 30.0,
        )
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        serve.start(proxy_location="HeadOnly", http_options=http)
        serve.run(build_app(settings), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        stages = serve.status().applications[APPLICATION].deployments.values()
        raise CannotServe(first_cause(*(stage.message for stage in stages), str(error))) from None


def first_cause(*reports: str) -> str:
    """The message of the innermost exception in the first of Serve's `reports` that holds a traceback.

    Without one, the last line of the last report.
    """
    causes = [cause for report in reports for cause in ERROR_LINE.findall(report)[-1:]]
    return str(causes[0]) if causes else reports[-1].strip().splitlines()[-1]


def wait_until_ready(url: str) -> None:
    """Return when the service at `url` is ready.

    Raises `CannotServe` if it will never be ready, or is not ready after `READY_SECONDS`.
    """
    answer = "no answer"
    give_up = time.monotonic() + READY_SECONDS
    while time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10.0):
                return
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")
            if reason := reason_to_give_up(answer):
                raise CannotServe(f"the warm-up image failed: {reason}") from None
        except OSError as error:
            answer = str(error)
        time.sleep(POLL_SECONDS)
    raise CannotServe(f"the service was not ready after {READY_SECONDS:g} seconds: {answer}")


def reason_to_give_up(readiness: str) -> str | None:
    """Why the model can never generate images, by the response of `/readyz`; None if it may become ready."""
    try:
        report = json.loads(readiness)
        return str(report["reason"]) if report["failed"] else None
    except (ValueError, KeyError, TypeError):  # Serve's own response while it starts
        return None


def url_of(settings: Settings) -> str:
    """The URL at which this machine reaches the service."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "") else settings.host
    return f"http://{host}:{settings.port}"


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
