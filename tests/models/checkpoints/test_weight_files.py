"""Which variant of the weights is read: the file names of diffusers and transformers, and the choice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from safelight.models.autoencoders.loading import load_vae
from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.checkpoints.tensors import list_tensors, load_into
from safelight.models.checkpoints.weight_files import (
    HF_WEIGHTS,
    WEIGHTS,
    find_weight_files,
    list_variants,
)
from safelight.models.denoisers import load_network
from safelight.models.find_checkpoint import ensure_tiny
from safelight.models.text.t5 import T5Encoder
from safelight.pipeline.assembly.check import check_folder
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.engine import build_runner
from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from tests.models.text.folders import write_t5_tokenizer

PLAIN, FP16, BF16, NON_EMA = "", "fp16", "bf16", "non-ema"


def name_of(variant: str) -> str:
    return f"diffusion_pytorch_model.{variant}.safetensors" if variant else WEIGHTS


@pytest.mark.parametrize(
    ("stored", "option", "dtype", "chosen"),
    [
        ((PLAIN, FP16, BF16), "", "bfloat16", PLAIN),
        ((FP16, BF16), "", "bfloat16", BF16),
        ((FP16, BF16), "", "float16", FP16),
        ((FP16, "fp32"), "", "float32", "fp32"),
        ((NON_EMA,), "", "float32", NON_EMA),
        ((FP16,), "", "float32", FP16),
        ((PLAIN, FP16, BF16), FP16, "bfloat16", FP16),
        ((FP16, NON_EMA), NON_EMA, "float32", NON_EMA),
        ((PLAIN, BF16), FP16, "float32", PLAIN),  # without the variant: as without the option
        ((PLAIN, BF16), FP16, "bfloat16", PLAIN),
        ((BF16,), FP16, "float32", BF16),
        ((FP16, BF16), NON_EMA, "bfloat16", BF16),
    ],
)
def test_the_variant_that_is_read(
    tmp_path: Path, stored: tuple[str, ...], option: str, dtype: str, chosen: str
) -> None:
    for variant in stored:
        save_file({"a": torch.ones(1)}, tmp_path / name_of(variant))
    weight_files = find_weight_files(tmp_path, WEIGHTS, ReadOptions(variant=option), dtype)
    assert (weight_files.variant, dict(weight_files.files)) == (chosen, {tmp_path / name_of(chosen): []})
    assert list_variants([tmp_path]) == sorted({*stored} - {PLAIN})


@pytest.mark.parametrize(
    ("stored", "dtype"), [((FP16, BF16), "float32"), ((FP16, NON_EMA), "bfloat16"), ((FP16, BF16), "")]
)
def test_an_open_choice_says_what_can_be_passed(tmp_path: Path, stored: tuple[str, ...], dtype: str) -> None:
    for variant in stored:
        save_file({"a": torch.ones(1)}, tmp_path / name_of(variant))
    with pytest.raises(CheckpointError) as refusal:
        find_weight_files(tmp_path, WEIGHTS, dtype=dtype)
    one, other = sorted(stored)
    assert f"which of the variants {one}, {other} to read is not said" in str(refusal.value)
    assert f"choose one with --variant {one} or --variant {other}" in str(refusal.value)


def spelt_by_diffusers(folder: Path) -> None:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    vae.half().save_pretrained(folder, variant="fp16", max_shard_size="5KB")
    vae.bfloat16().save_pretrained(folder, variant="bf16")


def spelt_as_by_older_releases(folder: Path) -> None:
    spelt_by_diffusers(folder)
    (folder / "diffusion_pytorch_model.safetensors.index.fp16.json").rename(
        folder / "diffusion_pytorch_model.fp16.safetensors.index.json"
    )


@pytest.mark.parametrize("write", [spelt_by_diffusers, spelt_as_by_older_releases])
def test_variants_as_diffusers_writes_them(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    assert list_variants([tmp_path]) == ["bf16", "fp16"]
    for variant, dtype in {"fp16": "F16", "bf16": "BF16"}.items():
        options = ReadOptions(variant=variant)
        stored = list_tensors(tmp_path, options=options)
        assert {tensor.dtype for tensor in stored.values()} == {dtype}
        ours = load_vae(tmp_path, "cpu", torch.float32, options).state_dict()
        if write is spelt_by_diffusers:
            theirs = AutoencoderKL.from_pretrained(tmp_path, variant=variant).state_dict()
            assert all(torch.equal(ours[name], tensor.float()) for name, tensor in theirs.items())
    assert len(find_weight_files(tmp_path, WEIGHTS, ReadOptions("fp16")).files) > 1


@pytest.mark.parametrize("max_shard_size", ["10GB", "9KB"])
def test_variants_as_transformers_writes_them(tmp_path: Path, max_shard_size: str) -> None:
    config = T5Config(vocab_size=256, d_model=16, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
    folder, tokenizer = tmp_path / "text_encoder", write_t5_tokenizer(tmp_path / "tokenizer")
    encoder = T5EncoderModel(config).half()
    encoder.save_pretrained(folder, variant="fp16", max_shard_size=max_shard_size)
    with torch.no_grad():
        encoder.shared.weight.zero_()
    encoder.save_pretrained(folder, variant="ema", max_shard_size=max_shard_size)
    assert list_variants([folder]) == ["ema", "fp16"]
    for variant in ("fp16", "ema"):
        ours = T5Encoder(folder, tokenizer, 8, "cpu", torch.float32, ReadOptions(variant))
        theirs = T5EncoderModel.from_pretrained(folder, variant=variant, dtype=torch.float32)
        ids = torch.arange(8)[None]
        torch.testing.assert_close(ours(ids, None), theirs(ids).last_hidden_state)
        expected = find_weight_files(folder, HF_WEIGHTS, ReadOptions(variant)).files
        assert (len(expected) > 1) == (max_shard_size == "9KB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose transformer has two variants beside the plain file, and whose autoencoder has none."""
    folder = shutil.copytree(ensure_tiny(), tmp_path / "model")
    tensors = load_file(folder / "transformer" / WEIGHTS)
    for value, variant in enumerate((FP16, NON_EMA), start=1):
        changed = {name: torch.full_like(tensor, value) for name, tensor in tensors.items()}
        save_file(changed, folder / "transformer" / name_of(variant))
    return folder


def first_weight(folder: Path, variant: str) -> Tensor:
    model = find_model(str(folder), ReadOptions(variant))
    build_decoder(model)  # which has no variant
    assert build_runner(model).network is not None
    network = load_network(model.path / "transformer", "cpu", torch.float32, model.read_options)
    return next(cast(nn.Module, network).parameters()).flatten()[0]


def test_parts_without_the_variant_are_read_without_it(folder: Path) -> None:
    assert first_weight(folder, FP16) == 1 and first_weight(folder, NON_EMA) == 2
    assert first_weight(folder, "") not in (1, 2)
    variants = {part.folder: part.variant for part in check_folder(str(folder), ReadOptions(NON_EMA)).parts}
    assert variants == {"text_encoder": "", "transformer": NON_EMA, "vae": ""}


def test_a_variant_of_no_part_is_refused_and_those_that_are_there_are_listed(folder: Path) -> None:
    complaint = r"no part has safetensors files of the variant 'int4'; there are fp16, non-ema$"
    with pytest.raises(UnknownModel, match=complaint):
        find_model(str(folder), ReadOptions("int4"))
    [fault] = check_folder(str(folder), ReadOptions("int4")).faults
    assert fault.endswith("the variant 'int4'; there are fp16, non-ema")
    with pytest.raises(UnknownModel, match="there is no variant at all"):
        find_model("tiny", ReadOptions("fp16"))


def test_a_variant_of_a_text_encoder_is_read(tmp_path: Path) -> None:
    folder = shutil.copytree(ensure_tiny(), tmp_path / "model")
    weights = folder / "text_encoder" / "open_clip_model.safetensors"
    weights.rename(weights.with_name("open_clip_model.fp16.safetensors"))
    assert check_folder(str(folder), ReadOptions(FP16)).faults == ()
    assert check_folder(str(folder)).faults == ()  # the only one


def test_shards_that_an_index_of_a_variant_names_must_be_there(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.fp16-00001-of-00001.safetensors"}}))
    with pytest.raises(CheckpointError, match="00001.safetensors is missing, although the index names it"):
        find_weight_files(tmp_path, HF_WEIGHTS, ReadOptions(FP16))


def test_a_module_is_filled_from_the_variant(tmp_path: Path) -> None:
    for value, variant in enumerate((FP16, BF16)):
        tensors = {"weight": torch.full((1, 1), float(value)), "bias": torch.zeros(1)}
        save_file(tensors, tmp_path / name_of(variant))
    for value, variant in enumerate((FP16, BF16)):
        module = load_into(nn.Linear(1, 1), tmp_path, "cpu", torch.float32, WEIGHTS, ReadOptions(variant))
        assert module.state_dict()["weight"].item() == value
    by_dtype = load_into(nn.Linear(1, 1), tmp_path, "cpu", torch.bfloat16)
    assert by_dtype.state_dict()["weight"].item() == 1
