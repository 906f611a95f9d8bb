"""`safelight check`: each fault of a broken folder in one line; sound folders of every family."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.models.checkpoints.tensors import WEIGHTS
from safelight.models.text.hf_folder import HF_WEIGHTS
from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from safelight.service import cli
from safelight.service.cli import UserError, serve
from safelight.service.settings import Settings
from tests.broken import tiny_without
from tests.live import SAFELIGHT
from tests.models.folders import write_dit, write_pixart, write_sd3
from tests.models.text.folders import edit_json, write_clip_tokenizer
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers and transformers

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sigma")
    write_pixart(folder)
    return folder


@pytest.fixture
def folder(sound_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound_folder, tmp_path / "model")


def edit(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def remove_a_tensor(folder: Path) -> None:
    edit(folder / "transformer" / WEIGHTS, lambda tensors: tensors.pop("proj_out.bias"))


def add_a_tensor(folder: Path) -> None:
    edit(folder / "vae" / WEIGHTS, lambda tensors: tensors.update(surplus=torch.zeros(1)))


def reshape_a_tensor(folder: Path) -> None:
    edit(
        folder / "text_encoder" / HF_WEIGHTS,
        lambda tensors: tensors.update({"shared.weight": torch.zeros(7, 32)}),
    )


def truncate_a_file(folder: Path) -> None:
    file = folder / "text_encoder" / HF_WEIGHTS
    file.write_bytes(file.read_bytes()[:-4])


def store_a_pickle(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")


def change_the_class(folder: Path) -> None:
    edit_json(folder / "transformer" / "config.json", _class_name="UNet2DConditionModel")


def remove_a_config(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def name_another_pipeline(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="FluxPipeline")


def change_the_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    write_clip_tokenizer(folder / "tokenizer", "!")


def empty_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


BROKEN = [
    (remove_a_tensor, "/transformer: tensor proj_out.bias is missing"),
    (add_a_tensor, "/vae: tensor surplus is not expected"),
    (reshape_a_tensor, "/text_encoder: tensor shared.weight has shape (7, 32), expected (256, 32)"),
    (truncate_a_file, f"/text_encoder/{HF_WEIGHTS} is not a readable safetensors file: "),
    (
        store_a_pickle,
        "/transformer/diffusion_pytorch_model.bin is a pickle, which is never loaded; convert it to ",
    ),
    (
        change_the_class,
        "/transformer/config.json: class 'UNet2DConditionModel' is not supported; supported: ",
    ),
    (remove_a_config, "/vae/config.json is missing"),
    (name_another_pipeline, ": 'FluxPipeline' with these parts is not supported; supported: "),
    (change_the_tokenizer, "/tokenizer"),
    (empty_the_folder, "/model_index.json is missing"),
]


@pytest.mark.parametrize(("damage", "fault"), BROKEN)
def test_each_fault_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, damage: Callable[[Path], None], fault: str
) -> None:
    damage(folder)
    assert cli.main(["check", str(folder), "--json"]) == 1
    [line] = json.loads(capsys.readouterr().out)["faults"]
    assert line.startswith(f"{folder}{fault}")
    assert cli.main(["check", str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [line, "1 fault"]


def test_faults_of_several_parts_are_reported_together(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    for damage in (remove_a_tensor, add_a_tensor, reshape_a_tensor):
        damage(folder)
    edit_json(folder / "scheduler" / "scheduler_config.json", beta_schedule="odd")
    assert cli.main(["check", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "4 faults"
    assert "beta_schedule 'odd' is not supported" in lines[-2]


@pytest.mark.parametrize(
    ("part", "changed", "fault"),
    [
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10},
            ": num_train_timesteps 10 is not supported, only 1000",
        ),
        (
            "scheduler/scheduler_config.json",
            {"use_karras_sigmas": True},
            ": use_karras_sigmas True is not supported, only False",
        ),
        (
            "scheduler/scheduler_config.json",
            FLOW | {"flow_shift": "three"},
            ": flow_shift is 'three', expected a number from 0.001 to 1000",
        ),
        (
            "scheduler/scheduler_config.json",
            FLOW | {"flow_shift": -1},
            ": flow_shift is -1, expected a number from 0.001 to 1000",
        ),
    ],
)
def test_an_unsupported_scheduler_option_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, part: str, changed: dict[str, Any], fault: str
) -> None:
    edit_json(folder / part, **changed)
    assert cli.main(["check", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == [f"{folder}/{part}{fault}"]
    with pytest.raises(UnknownModel, match=fault.removeprefix(": ")):
        find_model(str(folder))


def test_an_autoencoder_without_widths_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    edit_json(folder / "vae" / "config.json", block_out_channels=8)
    assert cli.main(["check", str(folder), "--json"]) == 1
    [line] = json.loads(capsys.readouterr().out)["faults"]
    assert line == f"{folder}/vae/config.json: block_out_channels is 8, expected a list of whole numbers"
    with pytest.raises(UnknownModel, match="block_out_channels is 8, expected a list"):
        find_model(str(folder))


def test_parts_that_do_not_fit_together_are_reported(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=16).save_pretrained(
        folder / "vae"
    )
    assert cli.main(["check", str(folder), "--json"]) == 1
    [line] = json.loads(capsys.readouterr().out)["faults"]
    assert "4 latent channels, the vae 16" in line


@pytest.mark.parametrize(
    ("write", "family"),
    [
        (write_pixart, "pixart-sigma"),
        (lambda folder: write_pixart(folder, "alpha"), "pixart-alpha"),
        (write_sd3, "sd3"),
        (lambda folder: write_sd3(folder, "sd3.5-medium", with_t5=False), "sd3.5-medium"),
        (lambda folder: write_sd3(folder, "sd3.5-large", with_t5=False), "sd3.5-large"),
        (write_dit, "dit"),
    ],
    ids=["sigma", "alpha", "sd3", "sd3.5-medium", "sd3.5-large", "dit"],
)
def test_a_sound_folder_of_every_family_passes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, write: Callable[[Path], object], family: str
) -> None:
    write(tmp_path)
    capsys.readouterr()
    assert cli.main(["check", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["path"], report["family"], report["faults"]) == (str(tmp_path), family, [])
    for part in report["parts"]:
        if part["class"] is None:
            assert part["part"] == "text_encoder_3"
            continue
        [file] = (tmp_path / part["part"]).glob("*.safetensors")
        tensors = load_file(file)
        assert part["parameters"] == sum(tensor.numel() for tensor in tensors.values())
        assert part["dtypes"] == {"F32": len(tensors)}
        assert part["bytes_on_disk"] == file.stat().st_size


def test_the_text_output_is_a_table(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["check", str(folder)]) == 0
    title, *rows, served, verdict = capsys.readouterr().out.splitlines()
    assert (title, verdict) == (f"{folder}: pixart-sigma", "sound")
    assert [row.split()[0] for row in rows] == ["part", "text_encoder", "transformer", "vae", "all"]
    assert rows[1].split()[1] == "T5EncoderModel"
    assert served == "served as model; by default 64x64, 20 steps of dpmpp_2m at guidance 4.5"


def test_choices_about_reading_are_reported(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    weights = folder / "vae" / WEIGHTS
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    edit_json(folder / "transformer" / "config.json", new_flag=True)
    flags = ["--variant", "fp16", "--allow-unknown-config"]
    assert cli.main(["check", str(folder), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" F32, variant fp16")] == ["vae"]
    assert "transformer: unknown options are ignored: new_flag" in lines
    assert cli.main(["check", str(folder), *flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["id"] == "model"
    facts = {part["part"]: (part["variant"], part["ignored_options"]) for part in report["parts"]}
    assert facts == {"text_encoder": (None, []), "transformer": (None, ["new_flag"]), "vae": ("fp16", [])}


def test_serving_checks_the_folder_as_it_will_be_read(folder: Path) -> None:
    edit_json(folder / "transformer" / "config.json", new_flag=True)
    with pytest.raises(UserError, match="not supported: new_flag; --allow-unknown-config"):
        serve._check_folder(str(folder), Settings(model=str(folder)))
    serve._check_folder(str(folder), Settings(model=str(folder), allow_unknown_config=True))
    weights = folder / "vae" / WEIGHTS
    for variant in ("fp16", "non-ema"):
        shutil.copyfile(weights, weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    weights.unlink()
    with pytest.raises(UserError, match="choose one with --variant fp16 or --variant non-ema"):
        serve._check_folder(str(folder), Settings(model=str(folder), allow_unknown_config=True))
    serve._check_folder(
        str(folder), Settings(model=str(folder), allow_unknown_config=True, variant="non-ema")
    )


@pytest.mark.parametrize("name", ["emoji-128", "tiny"])
def test_the_embedded_models_are_sound(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main(["check", name, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["family"], report["faults"]) == ("pixart-clip", [])
    assert [part["part"] for part in report["parts"]] == ["text_encoder", "transformer", "vae"]
    for part in report["parts"]:
        assert part["bytes_on_device"] == {
            "bfloat16": 2 * part["parameters"],
            "float32": 4 * part["parameters"],
        }
        assert part["bytes_on_disk"] > 0


def test_a_missing_folder_is_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "nowhere"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert "'nowhere' is neither a folder nor one of" in line


def test_models_and_families_are_listed_without_torch() -> None:
    code = (
        "import sys; from safelight.service import cli; cli.main(['models', '--json']); cli.main(['models']);"
        "sys.exit(' '.join({'torch', 'ray', 'numpy', 'transformers'} & set(sys.modules)) or None)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    json_line, *lines = process.stdout.splitlines()
    report = json.loads(json_line)
    emoji, turbo = report["models"]
    assert turbo.keys() == emoji.keys() and turbo["num_inference_steps"] == 4
    assert {
        "id",
        "family",
        "licence",
        "path",
        "sizes",
        "solvers",
        "num_inference_steps",
        "guidance_scale",
        "solver",
        "timestep_spacing",
    } == emoji.keys()
    names = [family["name"] for family in report["families"]]
    assert names == [
        "pixart-clip",
        "pixart-alpha",
        "pixart-sigma",
        "sd3",
        "sd3.5-medium",
        "sd3.5-large",
        "dit",
    ]
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")][-len(names) :] == names
    large = report["families"][-2]
    assert (large["num_inference_steps"], large["guidance_scale"], large["solver"]) == (28, 3.5, "euler")
    assert large["optional_parts"] == ["text_encoder_3"]
    assert large["origin"][0] == "https://huggingface.co/stabilityai/stable-diffusion-3.5-large"
    assert max(map(len, lines)) <= 150


def test_a_missing_folder_is_reported_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["check", str(tmp_path / "gone"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["family"], report["parts"]) == (None, [])
    [fault] = report["faults"]
    assert fault.startswith(f"model '{tmp_path / 'gone'}' is neither a folder nor one of emoji-128, ")


def test_a_file_is_not_a_folder(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["check", str(folder / "model_index.json")]) == 2
    assert "is a file, a checkpoint is a folder" in capsys.readouterr().err


def test_serve_refuses_a_broken_folder_before_it_starts_anything(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "vae" / WEIGHTS).unlink()
    assert cli.main(["serve", "--model", str(folder), "--port", "0"]) == 2
    assert capsys.readouterr().err == f"safelight serve: {folder}/vae/{WEIGHTS} is missing\n"


def test_serve_checks_a_folder_whatever_the_working_directory_holds(tmp_path: Path) -> None:
    """Here it holds a package of the same name, which must not be imported."""
    (tmp_path / "safelight").mkdir()
    (tmp_path / "safelight" / "__init__.py").write_text("raise ImportError('not this one')")
    model = tiny_without("proj_out.weight", tmp_path)
    command: list[str | Path] = [SAFELIGHT, "serve", "--model", str(model), "--port", "0"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"safelight serve: {model}/transformer: tensor proj_out.weight is missing\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise RuntimeError('no more memory')", "RuntimeError: no more memory"), ("exit(7)", "exit status 7")],
)
def test_serve_refuses_a_folder_whose_check_fails_by_itself(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    reason: str,
) -> None:
    monkeypatch.setattr(serve, "CHECK", (sys.executable, "-c", code))
    monkeypatch.setattr(serve, "_serve", lambda *_: pytest.fail("a service was started"))
    assert cli.main(["serve", "--model", str(folder), "--port", "0"]) == 2
    assert capsys.readouterr().err == f"safelight serve: {folder} cannot be checked: {reason}\n"


def test_serve_starts_a_sound_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def start(settings: Settings, *_: object) -> int:
        started.append(settings.model)
        return 0

    monkeypatch.setattr(serve, "_serve", start)
    assert cli.main(["serve", "--model", str(folder), "--port", "0"]) == 0
    assert started == [str(folder)]


def test_several_models_are_checked_and_what_they_share_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = write_tiny_model(tmp_path / "one", seed=1)
    two = write_tiny_model(tmp_path / "two", seed=2, shares=("vae",))
    assert cli.main(["check", f"tiny,{one},{two}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("sound") == 3
    assert lines[-2:] == [
        "one is served with the text encoder of tiny and the decoder of tiny",
        "two is served with the decoder of tiny",
    ]
    (two / "vae" / "config.json").unlink()
    assert cli.main(["check", "--json", f"{one},{two}"]) == 1
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [bool(report["faults"]) for report in reports] == [False, True]


def test_serve_checks_every_folder_of_several(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_serve", lambda *_: pytest.fail("a service was started"))
    sound, broken = write_tiny_model(tmp_path / "sound", seed=1), tmp_path / "broken"
    shutil.copytree(sound, broken)
    (broken / "transformer" / WEIGHTS).write_bytes(b"not safetensors")
    assert cli.main(["serve", "--model", f"tiny,{sound},{broken}", "--port", "0"]) == 2
    assert str(broken / "transformer") in capsys.readouterr().err
