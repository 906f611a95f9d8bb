"""`safelight serve`: the whole service on this machine, until Ctrl-C or SIGTERM."""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import list_model_names
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_defaults, add_model, add_served_name, model_settings
from safelight.service.cli.inputs import KEY_VARIABLE, models_of, settings_of
from safelight.service.cli.keys.check import check_keys
from safelight.service.cli.progress import progress
from safelight.service.runtime.addresses import BadAddress, BoundAddress, bound, find_address
from safelight.service.settings import Settings
from safelight.service.supervision.stop_request import StopRequest

# -P: Python would look for packages in the working directory first, which may hold others of these names.
CHECK = (sys.executable, "-P", "-m", "safelight.service.cli", "check")
CHECK_SECONDS = 600.0  # reading the headers of many files from a slow disk takes long
LOST = 1  # the exit status when the service has failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_served_name(parser)
    parser.add_argument("--host", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--port", help="port to listen on, 0 for any free port; default 8000")
    parser.add_argument(
        "--stages", metavar="split|colocated", help="one process per stage (default), or one for all three"
    )
    add_defaults(parser)
    parser.add_argument(
        "--log-level", metavar="debug|info|warning|error", help="least level of log lines; default info"
    )
    parser.add_argument(
        "--log-format", metavar="text|json", help="form of the log lines on stderr; default text"
    )


def run(args: argparse.Namespace) -> int:
    with StopRequest() as stop, contextlib.suppress(KeyboardInterrupt):  # a signal ends the command
        settings = settings_of(
            **model_settings(args),
            host=args.host,
            port=args.port,
            stages=args.stages,
            log_level=args.log_level,
            log_format=args.log_format,
        )
        try:
            with bound(find_address(settings.host, settings.port)) as at:
                settings = settings.updated(host=at.address.host, port=at.address.port)
                settings = check_keys(settings)
                models = models_of(settings)  # an unknown model is refused before anything is started
                for name in settings.models:
                    if name not in list_model_names():
                        _check_folder(name, settings)
                return _serve(settings, models, at, stop)
        except BadAddress as error:
            raise UserError(str(error)) from None
    return 0


def _check_folder(folder: str, settings: Settings) -> None:
    """Raise `UserError` for a checkpoint folder that cannot be served.

    A stage would fail on it too, but half a minute later and with Ray's message. The check runs in a process
    of its own, because its libraries are large and this process lives as long as the service.
    """
    flags = ["--json", "--variant", settings.variant] if settings.variant else ["--json"]
    flags += ["--allow-unknown-config"] if settings.allow_unknown_config else []
    command = [*CHECK, *flags, "--", folder]
    with progress(f"checking {folder}"):
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{folder} could not be checked within {CHECK_SECONDS:g} seconds") from None
    try:
        faults = json.loads(process.stdout)["faults"]
    except ValueError:  # the check itself has failed, and says why in its last line
        reason = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise UserError(f"{folder} cannot be checked: {reason}") from None
    if faults:
        raise UserError("; ".join(faults))


def _serve(settings: Settings, models: Sequence[ModelInfo], at: BoundAddress, stop: StopRequest) -> int:
    from safelight.service.local import CannotServe
    from safelight.service.supervision.restarts import Restarts
    from safelight.service.supervision.supervisor import ServiceLost, Supervisor

    restarts = Restarts(settings.restarts)
    announcement = _announcement(at.address.url, models, settings.requires_keys)
    while True:
        try:
            with Supervisor(settings, at, stop) as service:
                with progress("loading Ray") as report_progress:
                    is_ready = service.wait_until_ready(report_progress)
                if is_ready:
                    print(announcement, flush=True)
                    service.watch()
            return 0
        except CannotServe as error:
            if not restarts.number:
                raise UserError(str(error)) from None
            reason = str(error)
        except ServiceLost as error:
            reason = str(error)
        print(f"safelight serve: {reason}", file=sys.stderr)
        if stop.is_made or not restarts.take(time.monotonic()):
            return LOST
        print("safelight serve: starting again", file=sys.stderr)


def _announcement(url: str, models: Sequence[ModelInfo], requires_keys: bool) -> str:
    prompt = "0" if models[0].labels else "a red apple"  # a class label for class-conditional models
    header, body = "content-type: application/json", json.dumps({"prompt": prompt})
    key = f' -H "authorization: Bearer ${KEY_VARIABLE}"' if requires_keys else ""
    curl = f"curl {url}/v1/images/generations{key} -H '{header}' -d '{body}'"
    names = ", ".join(model.id for model in models)
    return f"Safelight serves {names} on {url}, try: {curl}"
