"""Small text encoders and tokenizers in transformers' layout, with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import Tensor, nn

from safelight.models.text.hf_folder import HF_WEIGHTS

VOCABULARY = 256  # of the small T5, more than its tokenizer has
PIECES = [
    *"abcdefghijklmnopqrstuvwxyz0123456789,.",
    "apple",
    "▁a",
    "▁red",
    "▁apple",
    "▁on",
    "▁the",
    "▁table",
    "▁green",
    "ing",
]


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def randomise(module: AnyModule, seed: int = 0) -> AnyModule:
    """Fill every weight from `seed`: states differ by text and by layer, and no norm is the identity."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.uniform_(-1, 1, generator=g)
            if tensor.ndim > 1 and "embed" not in name and "shared" not in name:
                tensor.mul_((3 / tensor.shape[1]) ** 0.5)
                if name.endswith("SelfAttention.q.weight"):
                    # T5 does not divide by the root of a head's channels, so its queries are smaller.
                    tensor.mul_(8**-0.5)
            elif "norm" in name and name.endswith("weight"):
                tensor.add_(1.5)
    return module.eval()


def write_t5_tokenizer(folder: Path) -> Path:
    """A T5 tokenizer of few pieces, as `tokenizer.json`."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((piece, -3.0 + len(piece) / 10) for piece in PIECES),
    ]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"} | marks))
    return folder


def write_clip_tokenizer(folder: Path, pad_token: str) -> Path:
    """CLIP's tokenizer as the public folders hold it: `vocab.json` and `merges.txt`."""
    tokenizer = SimpleTokenizer()
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {marks.get(token, token): number for token, number in tokenizer.encoder.items()}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in tokenizer.bpe_ranks), ""])
    )
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def shapes_in(part: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a part's one weight file."""
    with safe_open(part / HF_WEIGHTS, "pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def edit(part: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors in a part's one weight file."""
    tensors = load_file(part / HF_WEIGHTS)
    change(tensors)
    save_file(tensors, part / HF_WEIGHTS)


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
