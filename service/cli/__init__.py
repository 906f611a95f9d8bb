"""The command `safelight`. Nothing heavy is imported before the command line has been understood."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

USER_ERROR = 2


class UserError(Exception):
    """Something only the user can mend, in one sentence."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


COMMANDS = {  # each is a module of this package with `add_arguments` and `run`
    "generate": "draw images in this process, without a server",
    "serve": "start the service on this machine",
    "encode": "write the text states of a prompt to a safetensors file",
    "likelihood": "how well a model explains an image, and how much of that the prompt does",
    "eval": "how often a model draws what prompts say",
    "models": "list the embedded models, and the families of checkpoint folders that can be served",
    "check": "whether a checkpoint folder could be served, without drawing",
    "doctor": "what this machine will do, found out by doing it",
    "plan": "how many images a device would draw, how soon, and how many devices are needed",
    "simulate": "a fleet of GPUs under a day's traffic, and what is full first",
    "bench": "how fast this machine is, beside diffusers on the same weights",
    "solvers": "list the solvers: order, cost, schedules, source, and when to take which",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    try:
        code = int(_module(args.command).run(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"safelight {args.command}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def make_parser(argv: Sequence[str]) -> Parser:
    """The parser for `argv`: only the module of the command that it names is imported, for its flags."""
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
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"safelight {version('safelight')}")
        except PackageNotFoundError:
            print("safelight, not installed")
        parser.exit()
