"""Options that are not known, dtypes in configurations, and parts that `model_index.json` leaves out."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safelight.models import denoisers
from safelight.models.autoencoders import loading
from safelight.models.checkpoints import options
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.pipeline.assembly.check import check_folder
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.served_models import find_model
from tests.models.folders import make_old
from tests.models.text.folders import edit_json
from tests.pipeline.assembly.conftest import WRITERS

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers and transformers

LENIENT = ReadOptions(allow_unknown_config=True)


@pytest.mark.parametrize("family", WRITERS)
def test_unknown_options_are_refused_with_the_way_out_and_ignored_on_demand(
    copied: Callable[[str], Path], family: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(family)
    plain = denoisers.read_config(folder / "transformer")
    edit_json(folder / "transformer" / "config.json", new_flag=True, another={"a": 1})
    edit_json(folder / "vae" / "config.json", new_flag="on")
    way_out = "--allow-unknown-config (setting allow_unknown_config) ignores unknown options"
    assert check_folder(str(folder)).faults == (
        f"{folder}/transformer/config.json: not supported: another, new_flag; {way_out}",
        f"{folder}/vae/config.json: not supported: new_flag; {way_out}",
    )
    with caplog.at_level(logging.WARNING):
        report = check_folder(str(folder), LENIENT)
        model = find_model(str(folder), LENIENT)
        build_engine(model)
        build_decoder(model)
    assert report.faults == ()
    ignored = {part.folder: part.ignored_options for part in report.parts if part.ignored_options}
    assert ignored == {"transformer": ("another", "new_flag"), "vae": ("new_flag",)}
    assert [record.getMessage() for record in caplog.records if record.name == options.__name__] == [
        f"{folder}/transformer/config.json: unknown options are ignored: another, new_flag",
        f"{folder}/vae/config.json: unknown options are ignored: new_flag",
    ]
    assert denoisers.read_config(folder / "transformer", LENIENT) == plain
    assert model_profile(model).evaluation(8, 8) > 0


@pytest.mark.parametrize(
    ("family", "part", "option"),
    [
        ("sigma", "transformer", {"only_cross_attention": True}),
        ("sigma", "transformer", {"norm_type": "layer_norm"}),
        ("dit", "transformer", {"double_self_attention": True}),
        ("dit", "transformer", {"upcast_attention": True}),
        ("sd3", "transformer", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("sd3", "transformer", {"qk_norm": "layer_norm"}),
        ("sigma", "vae", {"latents_mean": [0.0] * 4}),
        ("sd3", "vae", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    ],
)
def test_options_that_are_known_to_change_the_result_stay_refused(
    copied: Callable[[str], Path], family: str, part: str, option: dict[str, object]
) -> None:
    folder = copied(family)
    edit_json(folder / part / "config.json", **option, new_flag=True)
    [fault] = check_folder(str(folder), LENIENT).faults
    assert fault.startswith(f"{folder}/{part}/config.json: ")
    assert next(iter(option)) in fault and "new_flag" not in fault


def test_old_folders_pass_with_and_without_unknown_options(copied: Callable[[str], Path]) -> None:
    folder = copied("dit")
    make_old(folder)
    assert check_folder(str(folder)).faults == ()
    edit_json(folder / "transformer" / "config.json", new_flag=1)
    assert check_folder(str(folder), LENIENT).faults == ()


@pytest.mark.parametrize("value", ["bf16", "torch.float16", "auto", 5, None, ["float32"], {"a": 1}])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtypes_in_configurations_are_ignored(
    written: dict[str, Path], tmp_path: Path, key: str, value: object
) -> None:
    """Weights are converted to the dtype of the device, whatever dtype they were saved in."""
    folder = shutil.copytree(written["sd3"], tmp_path / "model")
    for config in folder.glob("*/config.json"):
        edit_json(config, **{key: value})
    assert check_folder(str(folder)).faults == ()


def test_the_dtype_in_a_configuration_changes_no_state(copied: Callable[[str], Path]) -> None:
    folder = copied("sigma")
    [expected] = build_text_encoder(find_model(str(folder)), dtype=torch.float32).encode(["a red apple"])
    changes = {"dtype": "bf16", "torch_dtype": "half", "_attn_implementation": "flash_attention_2"}
    edit_json(folder / "text_encoder" / "config.json", **changes)
    [states] = build_text_encoder(find_model(str(folder)), dtype=torch.float32).encode(["a red apple"])
    assert torch.equal(states.states, expected.states)
    assert loading.build_empty(folder / "vae").state_dict().keys()


@pytest.mark.parametrize("part", ["text_encoder_3", "tokenizer_3"])
def test_a_part_with_null_in_the_index_is_left_out(copied: Callable[[str], Path], part: str) -> None:
    folder = copied("sd3")
    with_t5 = model_profile(find_model(str(folder))).text
    edit_json(folder / "model_index.json", **{part: [None, None]})
    report = check_folder(str(folder))
    assert report.faults == ()
    assert [part.folder for part in report.parts if part.class_name is None] == ["text_encoder_3"]
    assert model_profile(find_model(str(folder))).text < with_t5
    shutil.rmtree(folder / "tokenizer_3")  # which is then not looked at
    assert check_folder(str(folder)).faults == ()


@pytest.mark.parametrize("part", ["text_encoder_2", "transformer", "vae"])
def test_null_for_a_part_that_cannot_be_left_out_is_refused(copied: Callable[[str], Path], part: str) -> None:
    folder = copied("sd3")
    edit_json(folder / "model_index.json", **{part: [None, None]})
    [fault] = check_folder(str(folder)).faults
    assert fault == (f"{folder}/model_index.json has null for {part}, without which sd3 cannot be served")
    with pytest.raises(ValueError, match=f"null for {part}"):
        build_engine(find_model(str(folder)))


def test_a_missing_entry_in_the_index_is_left_out_too(copied: Callable[[str], Path]) -> None:
    folder = copied("sd3")
    index = json.loads((folder / "model_index.json").read_text())
    del index["text_encoder_3"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert [part.folder for part in check_folder(str(folder)).parts if part.class_name is None] == [
        "text_encoder_3"
    ]
