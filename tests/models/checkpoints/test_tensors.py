"""Faults of checkpoint folders are named in one line, and sound folders are loaded completely."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.models.autoencoders.loading import load_vae
from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, WEIGHTS, list_tensors, load_into, read_stored
from safelight.models.find_checkpoint import ensure_tiny, find_checkpoint
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from tests.models.text.folders import edit_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(ensure_tiny(), tmp_path / "model")


def load(folder: Path) -> None:
    model = find_model(str(folder))
    build_text_encoder(model)
    build_engine(model, dtype=torch.float32)
    build_decoder(model, dtype=torch.float32)


def edit(part: Path, change: Callable[[dict[str, Tensor]], object], weights: str = WEIGHTS) -> None:
    tensors = load_file(part / weights)
    change(tensors)
    save_file(tensors, part / weights)


def shard(part: Path) -> Path:
    """Split the weights of `part` in two files, with an index."""
    tensors = load_file(part / WEIGHTS)
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, part / file)
    (part / WEIGHTS).unlink()
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return part


def test_a_loaded_network_is_ready_for_inference(tmp_path: Path) -> None:
    """Dropout and gradients are off, and the weights are in the dtype that was asked for."""
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout())
    tensors = {"0.weight": torch.randn(3, 2).double(), "0.bias": torch.zeros(3)}
    save_file(tensors, tmp_path / WEIGHTS)
    network = load_into(empty, tmp_path, "cpu", torch.bfloat16)
    assert not any(module.training for module in network.modules())
    assert {(p.dtype, p.requires_grad) for p in network.parameters()} == {(torch.bfloat16, False)}
    assert torch.equal(network.state_dict()["0.weight"], tensors["0.weight"].bfloat16())


def test_a_complete_folder_loads(folder: Path) -> None:
    load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit(folder / "transformer", lambda t: t.pop("proj_out.bias"))
    with pytest.raises(CheckpointError, match=r"proj_out\.bias is missing"):
        load(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    edit(folder / "vae", lambda t: t.update({"stowaway": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="stowaway is not expected"):
        load(folder)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    edit(folder / "transformer", lambda t: t.update({"proj_out.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"proj_out\.bias has shape \(3,\), expected \(16,\)"):
        load(folder)


def test_a_pickle_is_refused(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        load(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is not a readable safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("text.ln_final.bias"), r"text\.ln_final\.bias is missing"),
        (lambda t: t.update(stowaway=torch.zeros(1)), "stowaway is not expected"),
        (
            lambda t: t.update({"text.positional_embedding": torch.zeros(20, 16)}),
            r"positional_embedding has shape \(20, 16\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_the_text_tower_is_loaded_strictly(
    folder: Path, change: Callable[[dict[str, Tensor]], object], match: str
) -> None:
    edit(folder / "text_encoder", change, CLIP_WEIGHTS)
    with pytest.raises(CheckpointError, match=match):
        load(folder)


def test_a_text_tower_without_weights_or_with_a_pickle_is_refused(folder: Path) -> None:
    (folder / "text_encoder" / CLIP_WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{CLIP_WEIGHTS} is missing"):
        load(folder)
    (folder / "text_encoder" / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"open_clip_pytorch_model\.bin is a pickle"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("vae/config.json", {"latent_channels": 8}, "transformer has 4 latent channels, the vae 8"),
        ("vae/config.json", {"upsampling_scaling_factor": 4}, "upsampling_scaling_factor is 4, only 2 is"),
        ("vae/config.json", {"out_channels": 4}, "out_channels is 4, only 3 is supported"),
        (
            "transformer/config.json",
            {"caption_channels": 99},
            "reads text of width 99, the text_encoder has 16",
        ),
        (
            "scheduler/scheduler_config.json",
            {"use_flow_sigmas": False},
            "prediction_type 'flow_prediction' is not supported",
        ),
        (
            "scheduler/scheduler_config.json",
            {"use_flow_sigmas": False, "prediction_type": "epsilon", "beta_start": 0.5},
            "beta_start 0.5 is not supported",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(
    folder: Path, file: str, changes: dict[str, Any], match: str
) -> None:
    edit_json(folder / file, **changes)
    with pytest.raises((CheckpointError, UnknownModel), match=match):
        load(folder)


def test_shards_load_and_a_missing_shard_is_named(folder: Path) -> None:
    part = shard(folder / "transformer")
    load(folder)
    (part / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors is missing, although the index names it"):
        load(folder)


def test_a_shard_without_a_tensor_of_the_index_is_named(folder: Path) -> None:
    part = shard(folder / "transformer")
    [file] = [file.name for file in part.glob("*.safetensors") if "proj_out.bias" in load_file(file)]
    edit(part, lambda t: t.pop("proj_out.bias"), file)
    with pytest.raises(
        CheckpointError, match=rf"{file}: tensor proj_out\.bias is missing, although the index names it"
    ):
        load(folder)


def test_a_tensor_in_two_shards_is_named(folder: Path) -> None:
    part = shard(folder / "transformer")
    for file in ("one.safetensors", "two.safetensors"):
        edit(part, lambda t: t.update({"proj_out.bias": torch.zeros(16)}), file)
    with pytest.raises(
        CheckpointError, match=r"two\.safetensors: tensor proj_out\.bias is also in one\.safetensors"
    ):
        load(folder)


def test_an_index_with_a_repeated_key_is_refused(folder: Path) -> None:
    index = shard(folder / "transformer") / f"{WEIGHTS}.index.json"
    index.write_text(
        index.read_text().replace('{"weight_map": {', '{"weight_map": {"proj_out.bias": "two.safetensors", ')
    )
    with pytest.raises(CheckpointError, match=r"index\.json says proj_out\.bias twice"):
        load(folder)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({}, "has no weight_map"),
        (
            {"weight_map": {"a": "../../secrets.safetensors"}},
            r"names '\.\./\.\./secrets\.safetensors', which is not a safetensors file",
        ),
        (
            {"weight_map": {"a": "weights.bin"}},
            r"names 'weights\.bin', which is not a safetensors file beside it",
        ),
    ],
)
def test_a_malformed_index_is_refused(tmp_path: Path, index: dict[str, Any], match: str) -> None:
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=match):
        list_tensors(tmp_path)


def test_a_single_variant_is_loaded_and_two_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2).half()}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(read_stored(list_tensors(tmp_path), "cpu", torch.float32)["a"], torch.ones(2))
    save_file({"a": torch.zeros(2).half()}, tmp_path / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(
        CheckpointError,
        match=f"{WEIGHTS} is missing, and which of the variants fp16, non_ema to read is not said",
    ):
        list_tensors(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / WEIGHTS)  # without a variant
    assert list_tensors(tmp_path)["a"].dtype == "F32"


def test_the_shards_of_the_only_variant_are_loaded(tmp_path: Path) -> None:
    files = [f"model.fp16-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for number, file in enumerate(files):
        save_file({f"t{number}": torch.ones(2).half()}, tmp_path / file)
    index = {"weight_map": {f"t{number}": file for number, file in enumerate(files)}}
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    stored = list_tensors(tmp_path, "model.safetensors")
    assert read_stored(stored, "cpu", torch.bfloat16).keys() == {"t0", "t1"}


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / WEIGHTS)
    with pytest.raises(
        CheckpointError, match="tensor a is stored as F8_E4M3, only F64, F32, F16, BF16, I64 are read"
    ):
        list_tensors(tmp_path)


def test_old_names_of_an_autoencoders_attention_are_read(tmp_path: Path) -> None:
    """diffusers renames the same tensors as it loads."""
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    new = load_vae(tmp_path, "cpu", torch.float32).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {
        re.sub(r"(attentions\.\d+)\.(to_[qkv]|to_out\.0)\.", lambda m: f"{m[1]}.{old[m[2]]}.", name): t
        for name, t in new.items()
    }
    assert sum(name not in new for name in renamed) == 16
    save_file(renamed, tmp_path / WEIGHTS)
    assert AutoencoderKL.from_pretrained(tmp_path).state_dict().keys() == new.keys()
    again = load_vae(tmp_path, "cpu", torch.float32).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in new.items())


def test_each_stage_loads_its_own_part_only(folder: Path) -> None:
    model = find_model(str(folder))
    weights = {"text_encoder": folder / "text_encoder" / CLIP_WEIGHTS} | {
        part: folder / part / WEIGHTS for part in ("transformer", "vae")
    }
    stages: dict[str, Callable[[ModelInfo], object]] = {
        "text_encoder": build_text_encoder,
        "transformer": build_engine,
        "vae": build_decoder,
    }
    for stage, build in stages.items():
        moved = {
            part: file.rename(file.with_suffix(".away")) for part, file in weights.items() if part != stage
        }
        build(model)
        for part, file in moved.items():
            file.rename(weights[part])


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("model_index.json", None, "model_index.json is missing"),
        ("model_index.json", "{", "is not JSON"),
        ("model_index.json", '{"_class_name": "FluxPipeline"}', "FluxPipeline.*not supported"),
        ("transformer/config.json", "[]", "does not hold a JSON object"),
        ("text_encoder/open_clip_config.json", None, "not supported"),
    ],
)
def test_a_wrong_file_is_named(folder: Path, file: str, content: str | None, match: str) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(UnknownModel, match=match):
        load(folder)


def test_a_vae_of_another_class_is_named(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", _class_name="VQModel")
    with pytest.raises(CheckpointError, match="VQModel.*not supported.*AutoencoderTiny"):
        load(folder)


def test_the_error_for_an_unknown_name_lists_the_models() -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor one of emoji-128, emoji-128-turbo, tiny"):
        find_checkpoint("nowhere")
