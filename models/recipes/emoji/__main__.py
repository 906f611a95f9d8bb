"""`python -m safelight.models.recipes.emoji STAGE`: run one stage; each prints how long it took."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

# In the order in which they are run.
STAGES = (
    "data",
    "text",
    "locked",
    "scorer",
    "vae",
    "dit",
    "anneal",
    "export",
    "prompts",
    "evaluate",
    "sizes",
    "curves",
    "contest",
)


def main() -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m safelight.models.recipes.emoji",
        description="Make the model emoji-128, one stage at a time.",
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/emoji"),
        help="folder for data, checkpoints and finished parts",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="training steps; default text and scorer 1100, locked 3500, vae 2800, dit 24000, anneal 6000, "
        "contest 1500",
    )
    parser.add_argument("--native-only", action="store_true", help="anneal: train on the native size only")
    parser.add_argument(
        "--output", type=Path, default=Path("models/weights/emoji-128"), help="export: the checkpoint folder"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=500,
        help="evaluate, sizes, curves, contest: use at most this many prompts of each set",
    )
    args = parser.parse_args()
    started = time.monotonic()
    _stages(args)[args.stage]()
    print(f"{args.stage}: {(time.monotonic() - started) / 60:.1f} minutes")


def _stages(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    from safelight.models.recipes.emoji import (
        contest,
        curves,
        data,
        dit,
        evaluate,
        export,
        locked,
        prompts,
        sizes,
        text,
        vae,
    )

    return {
        "data": lambda: data.run(args.work),
        "text": lambda: text.run(args.work, args.steps or 1100),
        "locked": lambda: locked.run(args.work, args.steps or 3500),
        "scorer": lambda: text.run(args.work, args.steps or 1100, text.SCORER),
        "vae": lambda: vae.run(args.work, args.steps or 2800),
        "dit": lambda: dit.run(args.work, args.steps or 24000),
        "anneal": lambda: dit.anneal(args.work, args.steps or 6000, other_sizes=not args.native_only),
        "export": lambda: export.run(args.work, args.output),
        "prompts": lambda: prompts.run(args.work, args.output),
        "sizes": lambda: sizes.run(args.work, args.output, args.limit),
        "curves": lambda: curves.run(args.work, args.output, args.limit),
        "contest": lambda: contest.run(args.work, args.output, args.steps or 1500, args.limit),
        "evaluate": lambda: evaluate.run(args.work, args.output, args.limit),
    }


if __name__ == "__main__":
    main()
