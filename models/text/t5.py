"""T5 encoders in transformers' layout, run by transformers, and how PixArt reads a text with one.

transformers is imported where a tower is built: models that read no T5 do without it.

Shapes: B texts, L text tokens, D width, I inner width of attention (heads x channels a head), F width of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import Depth
from safelight.models.checkpoints.tensors import Shapes, fill
from safelight.models.text.hf_folder import load_exactly, read_config
from safelight.models.text.reading import Reading, TokenisedText

PROJECTIONS = ("relu", "gated-gelu")  # of T5's MLP: version 1.0, and 1.1 as PixArt and SD3 have it
INSTALL = "in the checkout, pip install -e '.[t5]'"
EMBEDDING, EMBEDDING_TOO = (
    "shared.weight",
    "encoder.embed_tokens.weight",
)  # one tensor, tied; files hold either name or both

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class T5EncoderConfig:
    """The options of transformers' `T5Config` that decide shapes and tokens, by its names and with its defaults."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: Depth = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "relu"
    pad_token_id: int = 0
    eos_token_id: int = 1

    @property
    def is_gated(self) -> bool:
        return self.feed_forward_proj == "gated-gelu"

    @property
    def inner(self) -> int:
        return self.num_heads * self.d_kv

    @classmethod
    def read(cls, folder: Path) -> T5EncoderConfig:
        """The `config.json` in `folder`; `CheckpointError` if it is another model's or asks for what is not built."""
        read = read_config(folder, cls, "t5")
        if read.feed_forward_proj not in PROJECTIONS:
            raise CheckpointError(
                f"{folder / 'config.json'}: feed_forward_proj is {read.feed_forward_proj!r}, only {', '.join(PROJECTIONS)} are supported"
            )
        nearest = (
            read.relative_attention_num_buckets // 4
        )  # distances with a bucket each; up to the longest, the others share
        if not 1 <= nearest < read.relative_attention_max_distance:
            raise CheckpointError(
                f"{folder / 'config.json'}: {read.relative_attention_num_buckets} buckets do not cover distances "
                f"up to {read.relative_attention_max_distance}"
            )
        return read


def blueprint(folder: Path) -> Shapes:
    """Names and shapes of the tensors that the weights in `folder` must hold, in transformers' naming."""
    config = T5EncoderConfig.read(folder)
    d, inner, mlp = config.d_model, config.inner, config.d_ff
    rising = ("wi_0", "wi_1") if config.is_gated else ("wi",)
    block = {"layer.0.layer_norm": (d,), "layer.1.layer_norm": (d,), "layer.0.SelfAttention.o": (d, inner)}
    block |= {f"layer.0.SelfAttention.{part}": (inner, d) for part in "qkv"}
    block |= {f"layer.1.DenseReluDense.{part}": (mlp, d) for part in rising} | {
        "layer.1.DenseReluDense.wo": (d, mlp)
    }
    buckets = (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # the first block's serves all
    )
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


def canonical(found: dict[str, T]) -> dict[str, T]:
    """What a file holds by name, tensors or shapes, with the token embedding once and under one name."""
    renamed = {EMBEDDING: found[EMBEDDING_TOO]} if EMBEDDING_TOO in found else {}
    return {name: value for name, value in (renamed | found).items() if name != EMBEDDING_TOO}


class T5Encoder:
    """A T5 encoder and its tokenizer, on a device and in a dtype (float32 or bfloat16), reading `context` tokens.

    Raises `CheckpointError` for anything but exactly the tensors that the config asks for, another model's tokenizer, or
    a library that is not there.
    """

    def __init__(
        self, folder: Path, tokenizer: Path, context: int, device: torch.device | str, dtype: torch.dtype
    ):
        self.config = T5EncoderConfig.read(folder)
        self.context = context
        self._tokenizer = load_tokenizer(tokenizer, self.config)
        self._device = device
        self._network = _load_network(folder, device, dtype)
        self.flops_per_text = _flops(self.config, context)

    def tokenise(self, text: str) -> TokenisedText:
        """The ids of `text` and its end mark, cut and padded to the context; words with a piece that T5 has no token for are named."""
        tokens = self._tokens_of(text)
        unknown = self._unknown_words(text) if self._tokenizer.unk_token_id in tokens else ()
        framed = [*tokens[: self.context - 1], self.config.eos_token_id]
        ids = torch.tensor(framed + [self.config.pad_token_id] * (self.context - len(framed)))
        return TokenisedText(ids, len(tokens), len(tokens) > self.context - 1, unknown)

    def __call__(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Ids (B, L) and the mask (B, L) of those to attend to, or None for all, to states (B, L, D)."""
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
    """How PixArt reads: the text in lower case without outer spaces, its states under a mask that ends with it.

    That is what diffusers' pipelines do by default, unless BeautifulSoup happens to be installed: then they clean first
    (`clean_caption`). The cleaning was written for captions off the web. It takes brackets, links, Chinese characters and more
    out of a prompt without saying so; here what was asked for is what is read.
    """

    def __init__(
        self, folder: Path, tokenizer: Path, context: int, device: torch.device | str, dtype: torch.dtype
    ):
        self._encoder = T5Encoder(folder, tokenizer, context, device, dtype)
        self.flops_per_text = self._encoder.flops_per_text

    def read(self, text: str) -> Reading:
        """States (context, D) of the text, its end mark and padding; the mask is True for the first two."""
        tokenised = self._encoder.tokenise(text.lower().strip())
        length = min(tokenised.num_tokens + 1, self._encoder.context)
        mask = torch.arange(self._encoder.context) < length
        states = self._encoder(tokenised.ids[None], mask[None])[0].float().cpu()
        return Reading(states, mask, None, tokenised.num_tokens, tokenised.truncated, tokenised.unknown_words)


def load_tokenizer(folder: Path, config: T5EncoderConfig) -> Any:
    """transformers' `T5TokenizerFast` of `folder`; `CheckpointError` if it cannot be read, or its tokens are not those of the encoder."""
    if not (folder / "tokenizer.json").exists():
        _require_sentencepiece(folder / "spiece.model")
    transformers = _import_transformers()
    try:
        tokenizer = transformers.T5TokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its readers raise all sorts, a bare Exception among them
        raise CheckpointError(f"{folder} is not a T5 tokenizer: {_first_line(error)}") from None
    marks, wanted = (
        (tokenizer.pad_token_id, tokenizer.eos_token_id),
        (config.pad_token_id, config.eos_token_id),
    )
    if len(tokenizer) > config.vocab_size or marks != wanted:
        raise CheckpointError(
            f"{folder} is not this encoder's tokenizer: it has {len(tokenizer)} tokens, padding and end {marks}; "
            f"the encoder knows {config.vocab_size}, padding and end {wanted}"
        )
    return tokenizer


def build_empty(folder: Path) -> nn.Module:
    """The encoder in `folder` without its weights, on the meta device; `CheckpointError` for a config that is no T5's."""
    transformers = _import_transformers()
    try:
        with torch.device("meta"):
            network: nn.Module = transformers.T5EncoderModel(
                transformers.T5Config.from_dict(read_json(folder / "config.json"))
            )
    except (
        Exception
    ) as error:  # options that only transformers reads, judged by whatever its version judges them with
        raise CheckpointError(f"{folder / 'config.json'} is not a T5's: {_first_line(error)}") from None
    return network


def _load_network(folder: Path, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    network = build_empty(folder)
    tensors = load_exactly(folder, blueprint(folder), canonical, device, dtype)
    return fill(network, tensors | {EMBEDDING_TOO: tensors[EMBEDDING]}, folder)


def _flops(config: T5EncoderConfig, length: int) -> int:
    """A block is 8LDI (attention's projections) + 4L^2I (its two products) + 4LDF (the MLP, half as much again if gated)."""
    mlp = (6 if config.is_gated else 4) * length * config.d_model * config.d_ff
    return config.num_layers * (
        8 * length * config.d_model * config.inner + 4 * length**2 * config.inner + mlp
    )


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        raise CheckpointError(f"a T5 text encoder needs transformers: {INSTALL}") from None
    return transformers


def _require_sentencepiece(model: Path) -> None:
    if not model.exists():
        raise CheckpointError(f"{model} is missing, and so is tokenizer.json")
    if find_spec("sentencepiece") is None:  # transformers reads the file with it, and fails obscurely without
        raise CheckpointError(f"{model} needs sentencepiece: {INSTALL}")
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(str(model))
    except (RuntimeError, OSError):  # transformers would try it as something else, and advise on that
        raise CheckpointError(f"{model} is not a sentencepiece model") from None


def _first_line(error: Exception) -> str:
    """What transformers' own checks say after "Validation error ...:" stands on the next line."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]
