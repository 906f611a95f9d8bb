"""A Ray of our own for one service on one machine: started with it, stopped with it."""

import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from safelight.service.settings import Settings

APPLICATION = "safelight"
READY_SECONDS = 300.0
RAY_ATTEMPTS = 3  # its own time limits at start are short for a busy machine or a cold disk
POLL_SECONDS = 0.1
OBJECT_STORE_BYTES = 128 << 20  # latents and states are small
# What Ray and the hub would otherwise say, send or ask, and how modest the stages would be; an operator's own choice stands.
ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's own 15 lets any other process take the processor from an image
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "HF_HUB_OFFLINE": "1",
}
ERROR_LINE = re.compile(r"^\S*(?:Error|Exception): (.+)$", re.MULTILINE)


class CannotServe(Exception):
    """The service did not come up; the message says why."""


@contextlib.contextmanager
def running_service(settings: Settings, say: Callable[[str], None]) -> Iterator[str]:
    """The service's URL, from when it is ready; `KeyboardInterrupt` on Ctrl-C and on SIGTERM.

    Inside, stdout is stderr: Ray tells of dead workers on stdout, which belongs to the caller.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            _start_ray(say)
            say(f"starting the stages, {settings.stages}")
            _deploy(settings)
            say("drawing the warm-up image")
            wait_until_ready(url_of(settings))
            yield url_of(settings)
        finally:
            say("finishing the images in flight")
            _drain(settings.shutdown_seconds)
            say("stopping")
            _stop()


def try_ray() -> str:
    """Ray's version, after it was started, asked for it by a task, and stopped; raise `CannotServe`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.redirect_stdout(sys.stderr):
        import ray

        try:
            _start_ray(lambda text: None)
            version: str = ray.get(
                ray.remote(num_cpus=0)(lambda: ray.__version__).remote(), timeout=READY_SECONDS
            )
            return version
        except CannotServe:
            raise
        except Exception as error:  # Ray raises bare ones
            raise CannotServe(f"Ray started, and then failed: {error}") from None
        finally:
            ray.shutdown()


def _start_ray(say: Callable[[str], None]) -> None:
    import ray

    say("starting Ray")
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what matters is said by the exception
    for attempt in reversed(range(RAY_ATTEMPTS)):
        try:
            _init_ray()
            break
        except Exception as error:  # Ray raises bare ones
            ray.shutdown()
            if not attempt:
                raise CannotServe(f"Ray did not start: {error}") from error
            say("starting Ray again, the machine is slow")
    signal.signal(signal.SIGTERM, _interrupt)  # ray.init puts a handler of its own here


def _init_ray() -> None:
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=OBJECT_STORE_BYTES,
    )


def _stop() -> None:
    import ray
    from ray import serve

    for again in (signal.SIGINT, signal.SIGTERM):  # the first was heard; stopping must not be stopped halfway
        signal.signal(again, signal.SIG_IGN)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        if ray.is_initialized():  # else Serve would start another Ray to shut down
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _drain(seconds: float) -> None:
    """Let the gateway answer what it has let in; another Ctrl-C ends the wait."""
    from ray import serve

    with contextlib.suppress(
        Exception, KeyboardInterrupt
    ):  # a service that did not come up has nothing in flight
        serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=seconds)


def _deploy(settings: Settings) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from safelight.service.app import build_app

    try:
        # Serve's own time-out answers in plain text, so it must never be the first to run out
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
    """Serve reports a replica's failure as text with a traceback in it; the sentence of the first that has one."""
    causes = [cause for report in reports for cause in ERROR_LINE.findall(report)[-1:]]
    return str(causes[0]) if causes else reports[-1].strip().splitlines()[-1]


def wait_until_ready(url: str) -> None:
    answer = "no answer"
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
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
    """Why no image will ever be drawn, if that is known."""
    try:
        report = json.loads(readiness)
        return str(report["reason"]) if report["failed"] else None
    except (ValueError, KeyError, TypeError):  # not the gateway's answer, but Serve's while it starts
        return None


def url_of(settings: Settings) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "") else settings.host
    return f"http://{host}:{settings.port}"


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
