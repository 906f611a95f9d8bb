"""The check of a folder's parts names every fault at once, without reading a weight."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.models.checkpoints.tensors import WEIGHTS
from safelight.models.families.registry import list_families, recognise
from safelight.models.inspection.check import check_parts
from safelight.models.inspection.expected_tensors import files_of
from safelight.models.text.hf_folder import HF_WEIGHTS
from tests.models.folders import make_old, write_dit, write_pixart, write_sd3
from tests.models.text.folders import edit_json, write_clip_tokenizer, write_t5_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers and transformers


def faults_of(folder: Path) -> list[str]:
    return check_parts(folder, recognise(folder))[1]


@pytest.mark.parametrize("write", [write_pixart, write_dit])
def test_a_transformer_with_its_old_class_name_has_no_fault(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    write(tmp_path)
    make_old(tmp_path)
    assert faults_of(tmp_path) == []


@pytest.fixture(scope="module")
def written_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_sd3(folder)
    return folder


@pytest.fixture
def sd3(written_sd3: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written_sd3, tmp_path / "model")


@pytest.fixture
def sigma(tmp_path: Path) -> Path:
    write_pixart(tmp_path / "model")
    return tmp_path / "model"


def test_all_faults_are_named_at_once(sd3: Path) -> None:
    tensors = load_file(sd3 / "transformer" / WEIGHTS)
    for name in ("proj_out.bias", "proj_out.weight", "context_embedder.bias"):
        del tensors[name]
    tensors["stowaway"] = torch.zeros(1)
    tensors["norm_out.linear.bias"] = torch.zeros(3)
    save_file(tensors, sd3 / "transformer" / WEIGHTS)
    (sd3 / "text_encoder" / "config.json").unlink()
    shutil.rmtree(sd3 / "vae")
    shutil.rmtree(sd3 / "tokenizer_2")
    write_clip_tokenizer(sd3 / "tokenizer_2", "!")
    edit_json(sd3 / "tokenizer_2" / "vocab.json", xyzzyx=49408)
    assert faults_of(sd3) == [
        f"{sd3}/text_encoder/config.json is missing",
        f"{sd3}/tokenizer_2 is not CLIP's tokenizer: "
        "token 'xyzzyx' is missing, too much or has another number",
        f"{sd3}/transformer: tensor context_embedder.bias is missing (and 2 more)",
        f"{sd3}/transformer: tensor stowaway is not expected",
        f"{sd3}/transformer: tensor norm_out.linear.bias has shape (3,), expected (64,)",
        f"{sd3}/vae is missing",
    ]


def test_t5_may_be_left_out_but_not_broken(sd3: Path) -> None:
    (sd3 / "text_encoder_3" / HF_WEIGHTS).unlink()
    assert faults_of(sd3) == [f"{sd3}/text_encoder_3/{HF_WEIGHTS} is missing"]
    shutil.rmtree(sd3 / "text_encoder_3")
    assert faults_of(sd3) == []


def test_wrong_types_in_a_configuration_are_one_fault_a_file(sigma: Path) -> None:
    edit_json(sigma / "transformer" / "config.json", num_layers="many", interpolation_scale="x")
    edit_json(sigma / "vae" / "config.json", norm_num_groups="many")
    faults = faults_of(sigma)
    assert faults == [
        f"{sigma}/transformer/config.json: num_layers is 'many', expected a whole number from 1 to 1000",
        f"{sigma}/vae/config.json: norm_num_groups is 'many', expected a whole number, at least 1",
    ]


def test_blocks_of_an_autoencoder_that_are_not_built_are_a_fault(sigma: Path) -> None:
    edit_json(sigma / "vae" / "config.json", down_block_types=["FooBlock"])
    [fault] = faults_of(sigma)
    assert fault.startswith(f"{sigma}/vae/config.json: down_block_types is ['FooBlock'], only ['DownEncoder")


def test_every_option_of_a_network_is_checked_against_its_type(sigma: Path) -> None:
    edit_json(sigma / "transformer" / "config.json", interpolation_scale="x")
    assert faults_of(sigma) == [
        f"{sigma}/transformer/config.json: interpolation_scale is 'x', expected a positive number"
    ]


def test_options_that_only_transformers_reads_are_checked_by_it(sigma: Path) -> None:
    edit_json(sigma / "text_encoder" / "config.json", dropout_rate="much")
    [fault] = faults_of(sigma)
    assert fault.startswith(f"{sigma}/text_encoder/config.json is not a T5's: ")


def test_a_tokenizer_for_another_length_is_a_fault(sd3: Path) -> None:
    edit_json(sd3 / "tokenizer_2" / "tokenizer_config.json", model_max_length=248)
    assert faults_of(sd3) == [f"{sd3}/tokenizer_2: model_max_length is 248, the text encoders read 77 tokens"]


def test_classes_are_checked(tmp_path: Path) -> None:
    write_dit(tmp_path)
    edit_json(tmp_path / "model_index.json", id2label={"1000": "too far"})
    [fault] = faults_of(tmp_path)
    assert "id2label['1000'] is 'too far'" in fault


def test_a_checkpoint_of_true_size_is_checked_without_reading_it(tmp_path: Path) -> None:
    """24 GB of weights in sparse files that take no disk space."""
    family = next(family for family in list_families() if family.name == "pixart-sigma")
    assert family.published is not None
    for part in family.parts:
        folder, files = tmp_path / part.folder, files_of(part)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(family.published.configs[part.folder]))
        write_sparse(folder / files.weights, files.expected_shapes(folder))
    write_t5_tokenizer(tmp_path / "tokenizer")
    index = {"_class_name": "PixArtSigmaPipeline", "text_encoder": ["transformers", "T5EncoderModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reports, faults = check_parts(tmp_path, recognise(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    assert faults == []
    assert {report.folder: round(report.num_parameters / 1e9, 2) for report in reports} == {
        "text_encoder": 4.76,
        "transformer": 0.61,
        "vae": 0.08,
    }


def write_sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a sparse safetensors file of float32 tensors of `shapes`."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + end)
