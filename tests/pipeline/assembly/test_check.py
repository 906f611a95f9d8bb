"""Folders with sound tensors and nonsense in their configurations are refused, each fault in one line."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from safelight.models.checkpoints.tensors import WEIGHTS
from safelight.models.text.hf_folder import HF_WEIGHTS
from safelight.pipeline.assembly.check import check_folder
from tests.models.text.folders import edit_json
from tests.pipeline.assembly.conftest import WRITERS

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers and transformers

INDEX = "model_index.json"
TRANSFORMER = "transformer/config.json"
VAE = "vae/config.json"
TEXT = "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"

# family, file, the options changed in it, words of the fault
NONSENSE = [
    ("sigma", INDEX, {"_class_name": "DiTPipeline"}, "a DiTPipeline needs a DiTTransformer2DModel"),
    ("dit", INDEX, {"_class_name": "PixArtSigmaPipeline"}, "is not supported"),
    ("sigma", VAE, {"scaling_factor": "0.13"}, "scaling_factor is '0.13', expected a positive number"),
    ("sigma", VAE, {"scaling_factor": None}, "scaling_factor is None"),
    ("sigma", VAE, {"scaling_factor": float("nan")}, "scaling_factor is nan"),
    ("sigma", VAE, {"scaling_factor": 0}, "scaling_factor is 0"),
    ("sd3", VAE, {"shift_factor": "x"}, "shift_factor is 'x', expected a number or null"),
    ("sigma", VAE, {"latents_mean": [0.0] * 4}, "not supported: latents_mean"),
    ("sigma", VAE, {"use_post_quant_conv": "x"}, "use_post_quant_conv is 'x', expected true or false"),
    ("sigma", VAE, {"down_block_types": ["Foo", "Bar"]}, "down_block_types is ['Foo', 'Bar'], only"),
    ("sigma", TRANSFORMER, {"sample_size": 7}, "a side is a multiple of"),
    ("sigma", TRANSFORMER, {"sample_size": 4096}, "at most 4096"),
    ("sigma", TRANSFORMER, {"sample_size": 10**7}, "at most 4096"),
    ("sigma", TRANSFORMER, {"sample_size": True}, "sample_size is True"),
    ("sd3", TRANSFORMER, {"sample_size": 5}, "a side is a multiple of"),
    ("sd3", TRANSFORMER, {"sample_size": 400}, "at most"),
    ("sigma", TRANSFORMER, {"norm_eps": float("nan")}, "norm_eps is nan"),
    ("sigma", TRANSFORMER, {"norm_eps": -1}, "norm_eps is -1"),
    ("sigma", TRANSFORMER, {"interpolation_scale": 0}, "interpolation_scale is 0"),
    ("sigma", TRANSFORMER, {"num_layers": 10**8}, "expected a whole number from 1 to 1000"),
    (
        "sigma", TRANSFORMER, {"use_additional_conditions": "no"},
        "use_additional_conditions is 'no', expected true or false",
    ),
    ("sigma", TEXT, {"relative_attention_max_distance": 0}, "do not cover distances up to 0"),
    ("sigma", TEXT, {"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
    ("sigma", TEXT, {"num_layers": 10**8}, "expected a whole number from 0 to 1000"),
    ("sigma", SCHEDULER, {"thresholding": True}, "thresholding True is not supported"),
    ("dit", SCHEDULER, {"clip_sample": True}, "clip_sample True is not supported"),
    ("sigma", SCHEDULER, {"_class_name": "FooScheduler"}, "class 'FooScheduler' is not supported"),
    ("sigma", SCHEDULER, {"prediction_type": ["v"]}, "prediction_type ['v'] is not supported"),
    ("sigma", SCHEDULER, {"beta_schedule": {}}, "beta_schedule {} is not supported"),
    ("sigma", SCHEDULER, {"use_flow_sigmas": "yes"}, "use_flow_sigmas 'yes' is not supported"),
    ("sigma", SCHEDULER, {"use_flow_sigmas": True}, "supported: flow_prediction"),
    ("sd3", SCHEDULER, {"shift": 1e30}, "shift is 1e+30, expected a number from 0.001 to 1000"),
    ("sd3", SCHEDULER, {"shift": True}, "shift is True"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "file", "change", "says"),
    NONSENSE,
    ids=[f"{family}-{change}" for family, _, change, _ in NONSENSE],
)
def test_nonsense_is_refused(
    copied: Callable[[str], Path], family: str, file: str, change: dict[str, object], says: str
) -> None:
    folder = copied(family)
    edit_json(folder / file, **change)
    faults = check_folder(str(folder)).faults
    assert any(says in fault for fault in faults), faults
    assert not any("\n" in fault for fault in faults)


def test_a_sound_folder_has_no_faults(copied: Callable[[str], Path]) -> None:
    for family in WRITERS:
        folder = copied(family)
        assert check_folder(str(folder)).faults == ()
        shutil.rmtree(folder)


def test_a_transformer_of_another_family(written: dict[str, Path], copied: Callable[[str], Path]) -> None:
    folder = copied("sd3")
    shutil.rmtree(folder / "transformer")
    shutil.copytree(written["sigma"] / "transformer", folder / "transformer")
    assert any(
        "the transformer is a PixArtTransformer2DModel, a StableDiffusion3Pipeline needs" in f
        for f in check_folder(str(folder)).faults
    )


def swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "between")
    (folder / other).rename(folder / one)
    (folder / "between").rename(folder / other)


@pytest.mark.parametrize("what", ["text_encoder", "tokenizer"])
def test_clips_the_wrong_way_round(copied: Callable[[str], Path], what: str) -> None:
    folder = copied("sd3")
    swap(folder, what, f"{what}_2")
    assert any("the wrong way round" in fault for fault in check_folder(str(folder)).faults)


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def nest_deeply(file: Path) -> None:
    file.write_text("[" * 10**5)


# file, what replaces it, words of the fault
ODDITIES = [
    (TRANSFORMER, replace_by_pipe, "is not a file"),
    (TRANSFORMER, nest_deeply, "nested too deeply"),
    (f"transformer/{WEIGHTS}", replace_by_pipe, "is not a file"),
    (
        f"vae/{WEIGHTS}",
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    (f"vae/{WEIGHTS}", lambda file: file.write_text("<!doctype html>"), "is a web page"),
    (f"text_encoder/{HF_WEIGHTS}", lambda file: file.write_text("x"), "is not a readable safetensors file"),
    (TEXT, lambda file: edit_json(file, architectures=5, model_type="bert"), "model_type is 'bert'"),
    ("model_index.json", lambda file: file.write_text("{"), "is not JSON"),
]


@pytest.mark.parametrize(("name", "put", "says"), ODDITIES)
def test_odd_files_are_named(
    copied: Callable[[str], Path], name: str, put: Callable[[Path], object], says: str
) -> None:
    folder = copied("sigma")
    put(folder / name)
    faults = check_folder(str(folder)).faults
    assert any(says in fault for fault in faults), faults


NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's right to read any file."""
    if is_root := os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_files_without_permission_are_named(copied: Callable[[str], Path]) -> None:
    with TemporaryDirectory() as parent:  # only its owner may enter a folder of pytest's
        folder = shutil.copytree(copied("sigma"), Path(parent) / "sigma")
        if os.geteuid() == 0:
            for path in (Path(parent), folder, *folder.rglob("*")):
                os.chown(path, NOBODY, -1)
        assert check_folder(str(folder)).faults == ()  # this also imports what it needs
        transformer = folder / "transformer"
        (transformer / WEIGHTS).chmod(0)
        with unprivileged():
            faults = check_folder(str(folder)).faults
        assert [fault for fault in faults if "cannot be read: Permission denied" in fault] == [*faults] != []
        transformer.chmod(0)
        with unprivileged():
            faults = check_folder(str(folder)).faults
        assert any("cannot be read: Permission denied" in fault for fault in faults)
        transformer.chmod(0o755)  # so that it can be removed


def test_a_missing_part_is_one_fault(copied: Callable[[str], Path]) -> None:
    folder = copied("sigma")
    shutil.rmtree(folder / "vae")
    assert check_folder(str(folder)).faults == (f"{folder}/vae is missing",)


def test_a_class_name_that_is_a_list_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("sigma")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": ["a", "list"]}))
    [fault] = check_folder(str(folder)).faults
    assert "is not supported" in fault
