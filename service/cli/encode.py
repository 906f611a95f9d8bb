"""`safelight encode`: the text states of a prompt, as the network reads them."""

import argparse
from pathlib import Path

from safelight.pipeline.catalog.model_info import MAX_PROMPT_CHARACTERS
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import note, progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT")
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.safetensors",
        help="`states` (1, L, D) and `mask` (1, L)",
    )


def run(args: argparse.Namespace) -> int:
    model = model_of(settings_of(model=args.model))
    path = Path(args.output)
    if len(args.prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"PROMPT has {len(args.prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}")
    with progress("loading the text encoder"):
        from safetensors.torch import save_file

        from safelight.pipeline.assembly.encoder import build_text_encoder

        try:
            [text] = build_text_encoder(model).encode([args.prompt])
        except ValueError as error:  # a checkpoint that cannot be loaded
            raise UserError(str(error)) from None
        tensors = {"states": text.states, "mask": text.mask} | (
            {} if text.pooled is None else {"pooled": text.pooled}
        )
        save_file({name: tensor[None].contiguous() for name, tensor in tensors.items()}, path)
    cut = ", cut to what the encoder reads" if text.report.truncated else ""
    note(f"{path}: states {tuple(text.states[None].shape)}, {text.report.num_tokens} tokens{cut}")
    if text.report.unknown_words:
        note(f"words that the model does not know: {', '.join(text.report.unknown_words)}")
    return 0
