"""`python -m safelight.models.recipes.emoji STAGE`: run one stage; each prints how long it took."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

# In the order in which they are run.
STAGES = (
    "data",
    "pack",
    "unpack",
    "start",
    "text",
    "locked",
    "teacher",
    "natural",
    "retrieval",
    "scorer",
    "vae",
    "views",
    "dit",
    "anneal",
    "rate",
    "turbo",
    "decoder",
    "export",
    "prompts",
    "evaluate",
    "sizes",
    "curves",
    "contest",
)


def main() -> None:
    """Run one stage of the recipe."""
    args = _parser().parse_args()
    started = time.monotonic()
    _stages(args)[args.stage]()
    print(f"{args.stage}: {(time.monotonic() - started) / 60:.1f} minutes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m safelight.models.recipes.emoji",
        description="Make the model emoji-128, one stage at a time.",
    )
    parser.add_argument("stage", choices=STAGES)
    flag = parser.add_argument
    flag(
        "--work",
        type=Path,
        default=Path("build/emoji"),
        help="folder for data, checkpoints and finished parts",
    )
    flag(
        "--steps",
        type=int,
        help="training steps; default text and scorer 1100, locked 3500, natural, turbo and contest 1500, "
        "vae and decoder 2800, dit 24000, anneal 6000",
    )
    flag(
        "--minutes", type=float, default=math.inf, help="dit, anneal: stop after so long; run again to go on"
    )
    flag("--batch", type=int, help="dit, anneal, turbo: images of the native size in a batch")
    flag("--rate", type=float, default=1.0, help="dit, anneal, turbo: a factor of the learning rates")
    flag(
        "--native-only",
        action="store_true",
        help="dit, anneal, turbo: train on the native size only; rate: rate that size only",
    )
    flag("--turbo", action="store_true", help="rate, evaluate: the student of stage turbo, not the base")
    flag(
        "--output",
        type=Path,
        default=Path("models/weights/emoji-128"),
        help="the checkpoint folder that start reads, export writes and later stages rate",
    )
    flag(
        "--limit",
        type=int,
        default=500,
        help="rate, evaluate, sizes, curves, contest: use at most this many prompts of each set",
    )
    flag("--variations", type=int, default=40_000, help="teacher: label at most this many variations")
    return parser


def _stages(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    from safelight.models.recipes.emoji import (
        cheap_decoder,
        contest,
        curves,
        data,
        dit,
        evaluate,
        export,
        locked,
        natural_text,
        pack,
        prompts,
        rate,
        retrieval,
        sizes,
        start,
        teacher,
        text,
        turbo,
        vae,
        views,
    )

    def options(num_steps: int, batch: int = dit.BATCH) -> dit.TrainingOptions:
        return dit.TrainingOptions(
            args.steps or num_steps, args.minutes, args.batch or batch, args.rate, not args.native_only
        )

    return {
        "data": lambda: data.run(args.work),
        "pack": lambda: pack.run(args.work),
        "unpack": lambda: pack.unpack(args.work),
        "start": lambda: start.run(args.work, args.output),
        "text": lambda: text.run(args.work, args.steps or 1100),
        "locked": lambda: locked.run(args.work, args.steps or 3500),
        "teacher": lambda: teacher.run(args.work, args.variations),
        "natural": lambda: natural_text.run(args.work, args.steps or 1500, args.minutes),
        "retrieval": lambda: retrieval.run(args.work),
        "scorer": lambda: text.run(args.work, args.steps or 1100, text.SCORER),
        "vae": lambda: vae.run(args.work, args.steps or 2800),
        "views": lambda: views.run(args.work),
        "dit": lambda: dit.run(args.work, options(24000)),
        "anneal": lambda: dit.anneal(args.work, options(6000)),
        "rate": lambda: rate.run(
            args.work, args.output, rate.RatingOptions(args.limit, args.native_only, args.turbo)
        ),
        "turbo": lambda: turbo.run(args.work, options(1500, turbo.BATCH)),
        "decoder": lambda: cheap_decoder.run(args.work, args.steps or 2800, args.minutes),
        "export": lambda: export.run(args.work, args.output),
        "prompts": lambda: prompts.run(args.work, args.output),
        "sizes": lambda: sizes.run(args.work, args.output, args.limit),
        "curves": lambda: curves.run(args.work, args.output, args.limit),
        "contest": lambda: contest.run(args.work, args.output, args.steps or 1500, args.limit),
        "evaluate": lambda: evaluate.run(args.work, args.output, args.limit, args.turbo),
    }


if __name__ == "__main__":
    main()
