"""T5 encoders in transformers' layout, run by transformers, and PixArt's way of reading a text with one.

transformers is imported only when an encoder is built: models without a T5 do not need it.

Shapes: B texts, L text tokens, D width.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.missing_files import describe_missing, find_broken_links
from safelight.models.checkpoints.options import DTYPE_KEYS
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import PartFiles, Shapes, fill
from safelight.models.text.config import T5EncoderConfig
from safelight.models.text.flops import t5_flops
from safelight.models.text.hf_folder import HF_WEIGHTS, load_exactly
from safelight.models.text.prompt_syntax import read_prompt
from safelight.models.text.reading import Reading, TokenisedText

INSTALL = "in the checkout, pip install -e '.[t5]'"
# Two names of one tied tensor; files hold either of them or both.
EMBEDDING, EMBEDDING_ALIAS = "shared.weight", "encoder.embed_tokens.weight"
# How the encoder was run where the file was written. transformers fails for a dtype whose name torch does not
# know, and for kernels that are not installed.
RUNTIME_KEYS = (*DTYPE_KEYS, "attn_implementation", "_attn_implementation")

T = TypeVar("T")


def expected_shapes(folder: Path) -> Shapes:
    """Names and shapes of the tensors that the weights in `folder` must hold, in transformers' naming."""
    config = T5EncoderConfig.read(folder)
    d, inner, mlp = config.d_model, config.inner, config.d_ff
    up_projections = ("wi_0", "wi_1") if config.is_gated else ("wi",)
    block = {"layer.0.layer_norm": (d,), "layer.1.layer_norm": (d,), "layer.0.SelfAttention.o": (d, inner)}
    block |= {f"layer.0.SelfAttention.{part}": (inner, d) for part in "qkv"}
    block |= {f"layer.1.DenseReluDense.{part}": (mlp, d) for part in up_projections} | {
        "layer.1.DenseReluDense.wo": (d, mlp)
    }
    # The first block's table serves all blocks.
    buckets = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes: Shapes = {
        EMBEDDING: (config.vocab_size, d),
        buckets: (config.relative_attention_num_buckets, config.num_heads),
    }
    shapes |= {
        f"encoder.block.{i}.{part}.weight": shape
        for i in range(config.num_layers)
        for part, shape in block.items()
    }
    return shapes | {"encoder.final_layer_norm.weight": (d,)}


def canonical_names(tensors: dict[str, T]) -> dict[str, T]:
    """A file's tensors (or their shapes) by name, with the token embedding once and under one name."""
    renamed = {EMBEDDING: tensors[EMBEDDING_ALIAS]} if EMBEDDING_ALIAS in tensors else {}
    return {name: value for name, value in (renamed | tensors).items() if name != EMBEDDING_ALIAS}


class T5Encoder:
    """A T5 encoder and its tokenizer.

    Args:
        folder: the encoder.
        tokenizer: the folder of its tokenizer.
        context: the length of every text, in tokens.
        device: where the encoder runs.
        dtype: float32 or bfloat16.
        options: which variant of the files is read.

    Raises:
        CheckpointError: for anything but exactly the tensors that the config asks for, for another model's
            tokenizer, and if transformers is not installed.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Path,
        context: int,
        device: torch.device | str,
        dtype: torch.dtype,
        options: ReadOptions = DEFAULT_READ_OPTIONS,
    ):
        self.config = T5EncoderConfig.read(folder)
        self.context = context
        self._tokenizer = load_tokenizer(tokenizer, self.config)
        self._device = device
        self._network = _load_network(folder, device, dtype, options)
        self.flops_per_text = t5_flops(self.config, context)

    def tokenise(self, text: str) -> TokenisedText:
        """The ids of `text` and its end mark, cut and padded to the context.

        Words with a piece that T5 has no token for are listed as unknown.
        """
        tokens = self._tokens_of(text)
        unknown = self._unknown_words(text) if self._tokenizer.unk_token_id in tokens else ()
        framed = [*tokens[: self.context - 1], self.config.eos_token_id]
        ids = torch.tensor(framed + [self.config.pad_token_id] * (self.context - len(framed)))
        return TokenisedText(ids, len(tokens), len(tokens) > self.context - 1, unknown)

    def __call__(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Ids (B, L) to states (B, L, D); `mask` (B, L) is True for ids to attend to, None for all."""
        mask = None if mask is None else mask.to(self._device)
        states: Tensor = self._network(ids.to(self._device), attention_mask=mask).last_hidden_state
        return states

    def _tokens_of(self, text: str) -> list[int]:
        return list(
            self._tokenizer(
                text, add_special_tokens=False, truncation=False, padding=False, verbose=False
            ).input_ids
        )

    def _unknown_words(self, text: str) -> tuple[str, ...]:
        words = dict.fromkeys(text.split())
        return tuple(word for word in words if self._tokenizer.unk_token_id in self._tokens_of(word))


class T5Tower:
    """PixArt's text encoding: lower case, no outer spaces, and a mask that ends with the text.

    The arguments are those of `T5Encoder`.

    diffusers' pipelines do the same by default, unless BeautifulSoup is installed: then they clean the text
    first (`clean_caption`). The cleaning was written for captions from the web and silently removes brackets,
    links, Chinese characters and more from a prompt, so it is left out here.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Path,
        context: int,
        device: torch.device | str,
        dtype: torch.dtype,
        options: ReadOptions = DEFAULT_READ_OPTIONS,
    ):
        self._encoder = T5Encoder(folder, tokenizer, context, device, dtype, options)
        self.flops_per_text = self._encoder.flops_per_text

    def read(self, text: str) -> Reading:
        """States (context, D) of text, end mark and padding; the mask is False at padding."""
        tokenised = self._encoder.tokenise(text.lower().strip())
        length = min(tokenised.num_tokens + 1, self._encoder.context)  # one more for the end mark
        mask = torch.arange(self._encoder.context) < length
        states = self._encoder(tokenised.ids[None], mask[None])[0].float().cpu()
        return Reading(
            states,
            mask,
            pooled=None,
            num_tokens=tokenised.num_tokens,
            truncated=tokenised.truncated,
            unknown_words=tokenised.unknown_words,
            prompt_syntax=read_prompt(text).marks,
        )


def load_tokenizer(folder: Path, config: T5EncoderConfig) -> Any:
    """transformers' `T5TokenizerFast` in `folder`.

    Raises `CheckpointError` if it cannot be read or its tokens are not those of the encoder with `config`.
    """
    if broken := find_broken_links(folder):
        raise CheckpointError(f"{broken[0]} {describe_missing(broken[0])}")
    if not (folder / "tokenizer.json").exists():
        _require_sentencepiece(folder / "spiece.model")
    transformers = _import_transformers()
    try:
        tokenizer = transformers.T5TokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many types here, a bare Exception among them
        raise CheckpointError(f"{folder} is not a T5 tokenizer: {_first_line(error)}") from None
    marks = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    expected_marks = (config.pad_token_id, config.eos_token_id)
    if len(tokenizer) > config.vocab_size or marks != expected_marks:
        raise CheckpointError(
            f"{folder} is not this encoder's tokenizer: it has {len(tokenizer)} tokens, "
            f"padding and end {marks}; the encoder knows {config.vocab_size}, "
            f"padding and end {expected_marks}"
        )
    return tokenizer


def build_empty(folder: Path) -> nn.Module:
    """The encoder in `folder` without its weights, on the meta device.

    Raises `CheckpointError` for a config that transformers does not accept as a T5's.
    """
    transformers = _import_transformers()
    content = read_json(folder / "config.json")
    config = {key: value for key, value in content.items() if key not in RUNTIME_KEYS}
    try:
        with torch.device("meta"):
            network: nn.Module = transformers.T5EncoderModel(transformers.T5Config.from_dict(config))
    except Exception as error:  # what transformers raises for an option depends on its version
        raise CheckpointError(f"{folder / 'config.json'} is not a T5's: {_first_line(error)}") from None
    return network


def check_tokenizer(folder: Path, tokenizer: Path) -> None:
    """Raise `CheckpointError` unless the folder `tokenizer` fits the encoder in `folder`."""
    load_tokenizer(tokenizer, T5EncoderConfig.read(folder))


def _checked_shapes(folder: Path) -> Shapes:
    """`expected_shapes`, after transformers has checked the options that only it reads."""
    shapes = expected_shapes(folder)
    build_empty(folder)
    return shapes


FILES = PartFiles(HF_WEIGHTS, _checked_shapes, canonical_names, check_tokenizer)


def _load_network(
    folder: Path, device: torch.device | str, dtype: torch.dtype, options: ReadOptions
) -> nn.Module:
    network = build_empty(folder)
    tensors = load_exactly(folder, expected_shapes(folder), canonical_names, device, dtype, options)
    return fill(network, tensors | {EMBEDDING_ALIAS: tensors[EMBEDDING]}, folder)


def import_network() -> None:
    """Import transformers' network, if that is installed; loading an encoder raises an error if it is not."""
    with suppress(CheckpointError):
        _import_transformers().T5EncoderModel  # noqa: B018 - imported when it is first named


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        raise CheckpointError(f"a T5 text encoder needs transformers: {INSTALL}") from None
    module: ModuleType = transformers
    return module


def _require_sentencepiece(model: Path) -> None:
    if not model.exists():
        raise CheckpointError(f"{model} {describe_missing(model)}, and so is tokenizer.json")
    if find_spec("sentencepiece") is None:  # without it transformers fails with an obscure error
        raise CheckpointError(f"{model} needs sentencepiece: {INSTALL}")
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(str(model))
    except (RuntimeError, OSError):  # transformers would try other formats and complain about those
        raise CheckpointError(f"{model} is not a sentencepiece model") from None


def _first_line(error: Exception) -> str:
    """The first line of `error`, and the second if the first ends with a colon ("Validation error ...:")."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]
