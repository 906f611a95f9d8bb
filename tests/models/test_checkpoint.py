"""Broken checkpoint folders: each fault is named in one line; a good one loads whole."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import CLIP_WEIGHTS, WEIGHTS
from models.folder import CheckpointError
from models.registry import find_checkpoint
from models.tiny import ensure_tiny
from pipeline.build.decoder import build_decoder
from pipeline.build.encoder import build_text_encoder
from pipeline.build.engine import build_engine
from pipeline.catalog import UnknownModel, find_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(ensure_tiny(), tmp_path / "model")


def load(folder: Path) -> None:
    model = find_model(str(folder))
    build_text_encoder(model)
    build_engine(model, dtype=torch.float32)
    build_decoder(model, dtype=torch.float32)


def edit(part: Path, change, weights: str = WEIGHTS) -> None:
    tensors = load_file(part / weights)
    change(tensors)
    save_file(tensors, part / weights)


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_good_folder_loads(folder: Path) -> None:
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
        (lambda t: t.update({"text.positional_embedding": torch.zeros(20, 16)}), r"positional_embedding has shape \(20, 16\)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_the_text_tower_is_loaded_as_strictly(folder: Path, change, match: str) -> None:
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
        ("transformer/config.json", {"caption_channels": 99}, "reads text of width 99, the text_encoder has 16"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "prediction_type 'flow_prediction' is not supported"),
        (
            "scheduler/scheduler_config.json",
            {"use_flow_sigmas": False, "prediction_type": "epsilon", "beta_start": 0.5},
            "beta_start 0.5 is not supported",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(folder: Path, file: str, changes: dict, match: str) -> None:
    edit_json(folder / file, **changes)
    with pytest.raises((CheckpointError, UnknownModel), match=match):
        load(folder)


def test_shards_load_and_a_missing_shard_is_named(folder: Path) -> None:
    part = folder / "transformer"
    tensors = load_file(part / WEIGHTS)
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, part / shard)
    (part / WEIGHTS).unlink()
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    load(folder)
    (part / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors is missing, although the index names it"):
        load(folder)


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
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(CheckpointError, match="VQModel.*not supported.*AutoencoderTiny"):
        load(folder)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor one of emoji-128, tiny"):
        find_checkpoint("nowhere")
