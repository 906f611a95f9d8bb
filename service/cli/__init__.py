"""The command `safelight`. Nothing heavy is imported before the command line has been understood."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

USER_ERROR = 2


class UserError(Exception):
    """Something only the user can mend, in one sentence."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        code = int(import_module(f"safelight.service.cli.{args.command}").run(args))
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


def make_parser() -> Parser:
    parser = Parser(prog="safelight", description="Text in, image out.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands.add_parser("generate", help="draw images in this process, without a server"))
    _add_serve(commands.add_parser("serve", help="start the service on this machine"))
    _add_encode(commands.add_parser("encode", help="write the text states of a prompt to a safetensors file"))
    _add_likelihood(
        commands.add_parser(
            "likelihood", help="how well a model explains an image, and how much of that the prompt does"
        )
    )
    _add_eval(commands.add_parser("eval", help="how often a model draws what prompts say"))
    models = commands.add_parser(
        "models", help="list the embedded models, and the families of checkpoint folders that can be served"
    )
    models.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_check(
        commands.add_parser("check", help="whether a checkpoint folder could be served, without drawing")
    )
    _add_doctor(commands.add_parser("doctor", help="what this machine will do, found out by doing it"))
    _add_plan(
        commands.add_parser(
            "plan", help="how many images a device would draw, how soon, and how many devices are needed"
        )
    )
    _add_simulate(
        commands.add_parser("simulate", help="a fleet of GPUs under a day's traffic, and what is full first")
    )
    _add_bench(
        commands.add_parser("bench", help="how fast this machine is, beside diffusers on the same weights")
    )
    solvers = commands.add_parser(
        "solvers", help="list the solvers: order, cost, schedules, source, and when to take which"
    )
    solvers.add_argument("--json", action="store_true", help="one JSON array on stdout")
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what the image should not show")
    _add_model(parser)
    parser.add_argument("--size", metavar="WxH", help="default: the model's native size")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps, 1 to 200")
    parser.add_argument("--guidance-scale", type=float, metavar="W", help="0 to 20; 1 is off")
    parser.add_argument("--solver", metavar="NAME", help="one of `safelight solvers`")
    parser.add_argument(
        "--timestep-spacing", metavar="NAME", help="where the steps stand; default: the model's"
    )
    parser.add_argument(
        "--eta", type=float, metavar="E", help="0 to 1, with --solver ddim: its share of fresh noise"
    )
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("START", "END"),
        help="times, 0 data to 1 noise, at which guidance acts",
    )
    parser.add_argument(
        "--guidance-stride",
        type=int,
        metavar="N",
        help="evaluate both predictions at every Nth guided step only",
    )
    parser.add_argument(
        "--guidance-rescale", type=float, metavar="PHI", help="0 to 1: scale a guided prediction back"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="default: drawn at random and reported")
    parser.add_argument(
        "-n",
        type=int,
        metavar="N",
        help="how many images, 1 to 10; several are written as PATH-0, PATH-1, ...",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="picture.png",
        metavar="PATH",
        help=".png, .webp or .jpeg; default %(default)s",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout: the images and what they cost"
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--host", help="default 127.0.0.1")
    parser.add_argument("--port", help="default 8000; 0 for any free one")
    parser.add_argument(
        "--stages", metavar="split|colocated", help="a process a stage (default), or one for all three"
    )


def _add_encode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT")
    _add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.safetensors",
        help="`states` (1, L, D) and `mask` (1, L)",
    )


def _add_likelihood(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The density of the image's latent (not of its pixels) under the model without guidance, in bits a number, "
        "with the prompt and with the empty one. By the probability-flow ODE (`ode`: exact but for its steps and the spread of "
        "its probes; an evaluation and a gradient a probe, four times a step), or bounded by the discrete evidence lower bound "
        "(`elbo`: an evaluation a step and draw of noise, tighter with more steps)."
    )
    parser.add_argument("image", metavar="IMAGE", help="of a size that the model draws")
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    _add_model(parser)
    parser.add_argument("--method", choices=("ode", "elbo"), default="ode", help="default %(default)s")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="of the integral or the bound, 1 to 1000; default 20 for ode, 200 for elbo",
    )
    parser.add_argument(
        "--probes",
        type=int,
        default=4,
        metavar="K",
        help="random probes of the divergence, or draws of noise; default %(default)s",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the probes or the noise; default %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draws prompts and looks up the nearest clean image of each among those that the model was taught. FILE holds JSON lines with "
        "a prompt and any of concept (an emoji's hexcode, or several of which any is right), style and background. "
        "Without FILE: the sets that come with the model."
    )
    _add_model(parser)
    _add_quantization(parser)
    parser.add_argument("--prompts", metavar="FILE")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps, 1 to 200")
    parser.add_argument("--guidance-scale", type=float, metavar="W", help="0 to 20; 1 is off")
    parser.add_argument("--solver", metavar="S")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the first image; the next ones count on; default %(default)s",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many prompts of each set")
    parser.add_argument(
        "--keep",
        metavar="DIR",
        help="keep the images there; drawn again they are taken from there, so a run can be resumed",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads the configurations, the tokenizers and the headers of the weight files, not the weights. Names every fault in one line "
        "and ends with 1 if there is any."
    )
    parser.add_argument("folder", metavar="DIR", help="a checkpoint folder, or the name of an embedded model")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calls every attention kernel and torch.compile, compares the network with the plain one in float32, draws images alone and "
        "in company, measures what a tick costs, starts Ray, tries the port. Ends with 1 if anything is not as it should be."
    )
    _add_model(parser)
    parser.add_argument("--port", help="that the service would listen on; default 8000")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Predicts from the model's operations and the device's peak, before there is either: nothing is loaded and nothing drawn. "
        "Requests are taken to come at random (Poisson), one image each. With --gpu cpu this machine is measured instead."
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        help="an embedded model, a checkpoint folder, or a published checkpoint by its name, as sd3-medium; default emoji-128",
    )
    parser.add_argument(
        "--gpu",
        default="a100",
        metavar="NAME",
        help="a100, h100, h200, l40s, or cpu: this machine; default %(default)s",
    )
    parser.add_argument(
        "--service",
        metavar="URL",
        help="by what the stages of this running service have learnt of their own pace (`/v1/curve`)",
    )
    parser.add_argument("--size", metavar="WxH", help="default: the model's native size")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps, 1 to 200; default: the model's"
    )
    parser.add_argument(
        "--guidance-scale", type=float, metavar="W", help="0 to 20; 1 is off; default: the model's"
    )
    parser.add_argument("--solver", metavar="NAME", help="one of `safelight solvers`; default: the model's")
    parser.add_argument(
        "--images-per-hour", type=float, default=1000.0, metavar="N", help="wanted; default %(default)g"
    )
    parser.add_argument(
        "--latency-s",
        type=float,
        default=5.0,
        metavar="S",
        help="wanted at the percentile; default %(default)g",
    )
    parser.add_argument(
        "--percentile", type=float, default=95.0, metavar="P", help="of the latency; default %(default)g"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        metavar="SHARE",
        help="of the peak that is reached, 0 to 1; default: what eager networks reach, 0.4 on an A100",
    )
    parser.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="of the device, in place of its maker's figure or of measuring",
    )
    parser.add_argument("--price-per-hour", type=float, metavar="P", help="of a device, in any currency")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulates denoisers event by event with the service's own rules of batching and scaling, on a device's predicted cost curve. "
        "Nothing is loaded and nothing drawn. Of more than sixty GPUs sixty are followed, each of which stands for several."
    )
    parser.add_argument(
        "--model",
        default="pixart-sigma",
        metavar="NAME",
        help="a published checkpoint by its name; default %(default)s",
    )
    parser.add_argument(
        "--gpu", default="a100", metavar="NAME", help="a100, h100, h200 or l40s; default %(default)s"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of the peak that is reached; default %(default)g",
    )
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="the most that there may be")
    parser.add_argument(
        "--rate",
        type=float,
        required=True,
        metavar="R",
        help="images an hour that are asked for, on average",
    )
    parser.add_argument(
        "--trace", default="diurnal", metavar="T", help="steady, diurnal or spike; default %(default)s"
    )
    parser.add_argument("--hours", type=float, default=24.0, metavar="H", help="default %(default)g")
    parser.add_argument(
        "--grow", action="store_true", help="1, 10, 100, ... up to --gpus, each with its share of --rate"
    )
    parser.add_argument("--size", metavar="WxH", help="default: the model's native size")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's")
    parser.add_argument(
        "--least",
        type=int,
        default=1,
        metavar="N",
        help="GPUs that are never given back; default %(default)s",
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        default=16,
        metavar="N",
        help="rows of the network in a tick; default %(default)s",
    )
    parser.add_argument(
        "--target-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="of work that may wait for a replica; default %(default)g",
    )
    parser.add_argument(
        "--start-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="until a new GPU takes images; default %(default)g",
    )
    parser.add_argument(
        "--mean-life-hours",
        type=float,
        default=0.0,
        metavar="H",
        help="of a node; 0: none dies; default %(default)g",
    )
    parser.add_argument(
        "--price-per-hour", type=float, default=0.0, metavar="P", help="of a GPU, in any currency"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Times the engine and diffusers in one run: matrix products, an image alone, and a trace of unlike requests that arrive faster "
        "than they can be served. Everything else on the machine should rest."
    )
    _add_model(parser)
    _add_quantization(parser)
    parser.add_argument(
        "--requests", type=int, default=60, metavar="N", help="of the trace; default %(default)s"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        metavar="N",
        help="times the trace is replayed in each way; default %(default)s",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave out diffusers under torch.compile, which takes minutes to compile",
    )
    parser.add_argument(
        "--engine-only", action="store_true", help="leave out diffusers, and all but the trace"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="NAME_OR_DIR", help="an embedded model or a checkpoint folder; default emoji-128"
    )


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantization", metavar="none|int8", help="of the denoiser's large layers; default none"
    )


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"safelight {version('safelight')}")
        except PackageNotFoundError:
            print("safelight, not installed")
        parser.exit()
