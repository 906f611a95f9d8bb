"""The command line `safelight`; imports nothing heavy before the arguments are parsed."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from safelight.service.runtime.environment import bound_spinning, keep_loopback_direct

USER_ERROR = 2


class UserError(Exception):
    """A mistake of the user, in one sentence."""


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


# Each command is a module of this package with the functions `add_arguments` and `run`.
COMMANDS = {
    "generate": "draw images in this process, without a server",
    "serve": "start the HTTP service on this machine",
    "encode": "write the text encoder's output for a prompt to a safetensors file",
    "likelihood": "measure the probability density of an image under a model, with and without a prompt",
    "eval": "measure how often a model draws what the prompts ask for",
    "keys": "make, list and revoke the API keys of callers",
    "models": "list the embedded models and the families of checkpoint folders that can be served",
    "check": "check whether a checkpoint folder can be served, without loading its weights",
    "doctor": "check what this machine can do with a model, and predict its throughput",
    "plan": "predict throughput and latency on a GPU, and the number of GPUs that a load needs",
    "simulate": "simulate a fleet of GPUs under a day's traffic, and find its bottleneck",
    "bench": "measure throughput on this machine, and compare it with diffusers on the same weights",
    "solvers": "list the solvers with their order, cost, noise schedules, source and use",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names, by default the process's arguments; returns the exit status."""
    args = make_parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    keep_loopback_direct()
    bound_spinning()
    try:
        code = int(_module(args.command).run(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"safelight {args.command}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def make_parser(argv: Sequence[str]) -> Parser:
    """The parser for `argv`; only the command that `argv` names is imported and has its flags."""
    parser = Parser(prog="safelight", description="Text in, image out.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command_parser = commands.add_parser(name, help=summary)
        if name == command:
            _module(name).add_arguments(command_parser)
    return parser


def _module(command: str) -> ModuleType:
    return import_module(f"safelight.service.cli.{command}")


class _Version(argparse.Action):
    """Prints the installed version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"safelight {version('safelight')}")
        except PackageNotFoundError:
            print("safelight, not installed")
        parser.exit()
