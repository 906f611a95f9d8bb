"""Runs the service on one machine, on a Ray instance that is started and stopped with it."""

import contextlib
import logging
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.previews import MAX_PREVIEWS
from safelight.service.runtime.addresses import Address, bound, find_address
from safelight.service.runtime.causes import first_cause
from safelight.service.runtime.environment import bypass_proxies, service_environment
from safelight.service.runtime.readiness import ask_readiness
from safelight.service.runtime.shared_listener import NAME as LISTENER
from safelight.service.runtime.shared_listener import sharing
from safelight.service.served_model import find_served_models
from safelight.service.setting_types import replica_range
from safelight.service.settings import Settings
from safelight.service.stage_sets import plan_stages

logger = logging.getLogger(__name__)

APPLICATION = "safelight"
READY_SECONDS = 300.0
REACHABLE_SECONDS = 60.0  # after the deployment, in which a gateway must answer
STOPPING = "stopping"  # the last progress: the images in flight are finished
# Ray's time limits at start are short for a busy machine or a cold disk.
RAY_ATTEMPTS = 5
POLL_SECONDS = 0.1
FLOAT32_BYTES = 4
MIN_STORE_BYTES = 128 << 20
RAY_MIN_STORE_BYTES = 75 << 20  # Ray refuses less
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
    # What a spare worker imports.
    "RAY_preload_python_modules": "safelight.service.ray_serve.preload",
    "HF_HUB_OFFLINE": "1",
}

ProgressCallback = Callable[[str], None]


class CannotServe(Exception):
    """The service did not start; the message says why."""


@contextlib.contextmanager
def running_service(settings: Settings, report_progress: ProgressCallback) -> Iterator[str]:
    """Start the service in this process, yield its URL when it is ready, and stop it.

    The environment must be one of `make_environment`. Ctrl-C and SIGTERM raise `KeyboardInterrupt`. Inside,
    stdout is stderr: Ray reports dead workers on stdout, which is reserved for the command's output. Raises
    `CannotServe`.
    """
    with (
        contextlib.redirect_stdout(sys.stderr),
        bound(find_address(settings.host, settings.port)) as at,
        sharing(at.listener, _listener_path()),
    ):
        try:
            start_ray(settings, report_progress)
            yield deploy_service(settings.updated(port=at.address.port), report_progress)
        finally:
            stop_service(settings, report_progress)


def start_ray(settings: Settings, report_progress: ProgressCallback) -> None:
    """Start Ray on this machine. Raises `CannotServe`."""
    _set_variables()
    _start_ray(report_progress, object_store_bytes(settings))


def deploy_service(settings: Settings, report_progress: ProgressCallback) -> str:
    """Start the stages and the gateway, and return the service's URL when it is ready.

    The socket of the settings' host and port must be shared in the folder of the service's environment.
    Raises `CannotServe`.
    """
    address = find_address(settings.host, settings.port)
    report_progress(f"starting the stages, {settings.stages}")
    _deploy(settings)
    report_progress("drawing the warm-up image")
    wait_until_ready(address)
    return address.url


@contextlib.contextmanager
def spare_workers(settings: Settings) -> Iterator[None]:
    """Within it, idle workers with all libraries replace what is lost."""
    from safelight.service.ray_serve.spare_workers import SpareWorkers

    if not settings.spare_workers:
        yield
        return
    folder = Path(os.environ["RAY_TMPDIR"])
    workers = SpareWorkers(settings.spare_workers, find_served_models(settings), folder)
    workers.start()
    try:
        yield
    finally:
        workers.stop()


def stop_service(settings: Settings, report_progress: ProgressCallback) -> None:
    """Finish the images in flight, as far as `shutdown_seconds` allow, and stop Ray."""
    report_progress("finishing the images in flight")
    _drain(settings.shutdown_seconds)
    report_progress(STOPPING)
    _stop()


def _set_variables() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def try_ray() -> str:
    """Start Ray, run a task, stop Ray, and return its version. Raises `CannotServe`."""
    _set_variables()
    with service_environment(), contextlib.redirect_stdout(sys.stderr):
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
    _, num_gateways = replica_range("gateway_replicas", settings.gateway_replicas)
    image_bytes = sum(
        _image_bytes(model, settings.stages == "split") for model in find_served_models(settings)
    )
    needed = num_gateways * settings.max_pictures * image_bytes
    try:
        available = shutil.disk_usage(shared_memory).free
    except OSError:  # not Linux
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 3
    return max(MIN_STORE_BYTES, min(math.ceil(needed / SPILLING_SHARE), available * 9 // 10))


def _image_bytes(model: ModelInfo, is_split: bool) -> int:
    """The most that one image leaves in the object store until it is answered.

    Between split stages these are the states of its two texts, and the latents of the image and its previews;
    in any layout its file, which is at most its pixels.
    """
    profile = model_profile(model)
    pixels = max(width * height for width, height in model.sizes)
    file = 3 * pixels
    if not is_split:
        return file
    latents = FLOAT32_BYTES * profile.latent_channels * pixels // profile.scale**2
    return 2 * profile.text_bytes + (1 + MAX_PREVIEWS) * latents + file


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

    # Ray's processes reach each other at this address of the machine.
    os.environ.update(bypass_proxies(os.environ, ray.util.get_node_ip_address()))
    _leave_out_unused_processes()
    folder, store_bytes = place_object_store(store_bytes, Path(os.environ["RAY_TMPDIR"]))
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=store_bytes,
        _plasma_directory=folder,
    )


def _leave_out_unused_processes() -> None:
    """Let Ray start without processes that nothing here uses, which no setting prevents.

    Ray starts its API server also without a dashboard, for usage statistics. It then asks the metadata
    servers of three clouds where it runs, also if these statistics are off. The monitors of autoscaling and
    logs take a third of the processor time of Ray's start, and its other processes must be up in 30 s.
    """
    services: Any = import_module("ray._private.services")
    services.start_api_server = lambda *_, **__: (None, None)  # what it returns when it has failed
    node: Any = import_module("ray._private.node").Node
    node.start_monitor = node.start_log_monitor = lambda _: None


def place_object_store(
    store_bytes: int, temporary: Path, shared_memory: Path = SHARED_MEMORY
) -> tuple[str | None, int]:
    """The folder and the size of Ray's object store; without a folder, Ray uses shared memory.

    Raises `CannotServe` if neither shared memory nor `temporary` has room for the smallest store.
    """
    if sys.platform != "linux":
        return None, store_bytes
    is_usable = shared_memory.is_dir() and os.access(shared_memory, os.W_OK | os.X_OK)
    free = shutil.disk_usage(shared_memory).free if is_usable else 0
    if free >= store_bytes:
        return None, store_bytes
    room = min(store_bytes, shutil.disk_usage(temporary).free * 9 // 10)
    too_small = (
        f"{shared_memory} has {free >> 20} MiB free and Ray's object store needs {store_bytes >> 20} MiB"
    )
    advice = "docker run --shm-size, or a volume of medium Memory in Kubernetes, makes it larger"
    if room < RAY_MIN_STORE_BYTES:
        raise CannotServe(f"{too_small}, for which {temporary} has no room either; {advice}")
    logger.warning("%s, so it lies in %s, which may be slower; %s", too_small, temporary, advice)
    return str(temporary), room


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
    """Let all gateways finish the images in flight; another Ctrl-C ends the wait."""
    import ray
    from ray import serve

    if not ray.is_initialized():  # Serve would start it
        return
    # A service that did not start has no application to drain.
    with contextlib.suppress(Exception, KeyboardInterrupt):
        gateways = serve.get_deployment_handle("Gateway", APPLICATION)
        gateways.broadcast("drain").results(timeout_s=seconds)


def _listener_path() -> Path:
    return Path(os.environ["RAY_TMPDIR"]) / LISTENER


def _deploy(settings: Settings) -> None:
    from ray import serve

    from safelight.service.app import build_sets_app
    from safelight.service.live_changes import LiveChanges

    try:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        serve.start(proxy_location="Disabled")  # the gateways serve HTTP themselves
        served = plan_stages(find_served_models(settings), settings)
        changes = partial(LiveChanges, settings, APPLICATION, _listener_path())
        app = build_sets_app(settings, served, make_changes=changes, listener_path=_listener_path())
        serve.run(app, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        application = serve.status().applications.get(APPLICATION)  # absent if Serve itself did not start
        stages = application.deployments.values() if application else ()
        raise CannotServe(first_cause(*(stage.message for stage in stages), str(error))) from None


def wait_until_ready(address: Address) -> None:
    """Return when the service at `address` is ready.

    Raises `CannotServe` if it will never be ready, or is not ready after `READY_SECONDS`, or if nothing
    answers for `REACHABLE_SECONDS`.
    """
    start = reached = time.monotonic()
    while not (answer := ask_readiness(address)).is_ready:
        if answer.is_final:
            raise CannotServe(f"the warm-up image failed: {answer.text}")
        now = time.monotonic()
        reached = now if answer.is_reached else reached
        if now > reached + REACHABLE_SECONDS:
            raise CannotServe(f"nothing has answered for {REACHABLE_SECONDS:g} seconds: {answer.text}")
        if now > start + READY_SECONDS:
            raise CannotServe(f"the service was not ready after {READY_SECONDS:g} seconds: {answer.text}")
        time.sleep(POLL_SECONDS)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
