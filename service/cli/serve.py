"""`safelight serve`: the whole service on this machine, until it is told to stop."""

import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import progress
from safelight.service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--host", help="default 127.0.0.1")
    parser.add_argument("--port", help="default 8000; 0 for any free one")
    parser.add_argument(
        "--stages", metavar="split|colocated", help="a process a stage (default), or one for all three"
    )


def run(args: argparse.Namespace) -> int:
    settings = settings_of(model=args.model, host=args.host, port=args.port, stages=args.stages)
    settings = settings.updated(port=_free_port(settings))
    model = model_of(settings)  # a wrong name is said before anything is started
    if Path(settings.model).is_dir():
        _require_sound(settings.model)
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
        _serve(settings, model)
    return 0


def _require_sound(folder: str) -> None:
    """Raise `UserError` for a checkpoint that would fail in a stage, in half a minute and in Ray's words.

    In a process of its own: what reads weights is large, and this one lives as long as the service.
    """
    with progress(f"checking {folder}"):
        command = [sys.executable, "-m", "safelight.service.cli", "check", folder, "--json"]
        checked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if checked.returncode and checked.stdout:
        raise UserError("; ".join(json.loads(checked.stdout)["faults"]))


def _serve(settings: Settings, model: ModelInfo) -> None:
    stdout = sys.stdout
    with contextlib.ExitStack() as service:
        with progress("loading Ray") as say:
            from safelight.service.local import CannotServe, running_service

            try:
                url = service.enter_context(running_service(settings, say))
            except CannotServe as error:
                raise UserError(str(error)) from None
        stdout.write(_announcement(url, model))
        stdout.flush()
        signal.pause()


def _free_port(settings: Settings) -> int:
    """The asked port if nobody listens there; for 0, any that is free now."""
    try:
        with socket.create_server((settings.host, settings.port)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot listen on port {settings.port} of {settings.host}: {reason}; choose another with --port"
        ) from None


def _announcement(url: str, model: ModelInfo) -> str:
    prompt = "0" if model.labels else "a red apple"  # a class
    curl = f"""curl {url}/v1/images/generations -H 'content-type: application/json' -d '{{"prompt": "{prompt}"}}'"""
    return f"Safelight serves {model.id} on {url}, try: {curl}\n"
