"""`safelight encode`: write the text states of a prompt, as the network reads them, to a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import MAX_PROMPT_CHARACTERS, ModelInfo
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model, model_settings
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import note, note_reading, progress
from safelight.service.runtime.output_files import CannotWrite, check_writable, write_file

if TYPE_CHECKING:
    from safelight.pipeline.engine.text_encoder import TextStates

OUTPUT_HELP = (
    "the file to write: `states` (1, L, D), `mask` (1, L) and, if the network reads it, `pooled` (1, P)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("prompt", metavar="PROMPT")
    add_model(parser)
    flag("-o", "--output", required=True, metavar="FILE.safetensors", help=OUTPUT_HELP)


def run(args: argparse.Namespace) -> int:
    model = model_of(settings_of(**model_settings(args)))
    path = Path(args.output)
    if len(args.prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"PROMPT has {len(args.prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
        )
    try:
        check_writable(path)
        text = _encode(model, args.prompt, path)
    except CannotWrite as error:
        raise UserError(str(error)) from None
    cut = ", cut to the encoder's maximum length" if text.report.truncated else ""
    note(f"{path}: states {tuple(text.states[None].shape)}, {text.report.num_tokens} tokens{cut}")
    report = text.report
    note_reading(report.unknown_words, report.prompt_syntax, dict(report.corrected_words))
    return 0


def _encode(model: ModelInfo, prompt: str, path: Path) -> TextStates:
    """Encode `prompt`, and write the file. Raises `UserError` and `CannotWrite`."""
    with progress("loading the text encoder"):
        from safetensors.torch import save

        from safelight.pipeline.assembly.encoder import build_text_encoder

        try:
            [text] = build_text_encoder(model).encode([prompt])
        except ValueError as error:  # a checkpoint that cannot be loaded
            raise UserError(str(error)) from None
        tensors = {"states": text.states, "mask": text.mask}
        if text.pooled is not None:
            tensors["pooled"] = text.pooled
        write_file(path, save({name: tensor[None].contiguous() for name, tensor in tensors.items()}))
    return text
