"""Which stages models share: those of equal files, however the files came there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from safelight.models.find_checkpoint import ensure_tiny
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.catalog.shared_parts import has_same_autoencoder, has_same_text_encoder
from safelight.service.settings import Settings
from safelight.service.stage_sets import StageSet, plan_stages, served_by, with_set, without_model
from tests.tiny_models import write_tiny_model

TINY = find_model("tiny")
SETTINGS = Settings(model="tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """A model whose transformer alone differs from that of `tiny`."""
    return find_model(str(write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)))


def changed(model: ModelInfo, folder: Path, file: str) -> ModelInfo:
    """A copy of `model` in `folder`, one byte of one of whose files differs."""
    shutil.copytree(model.path, folder)
    path = folder / file
    content = bytearray(path.read_bytes())
    content[-1] = ord(" ") if path.suffix == ".json" else content[-1] ^ 1
    path.write_bytes(content)
    return replace(model, path=folder, id=folder.name)


def test_one_model_has_the_plain_names() -> None:
    assert plan_stages([TINY], SETTINGS) == (StageSet(TINY, "TextEncoder", "Denoiser", "VaeDecoder"),)
    [colocated] = plan_stages([TINY], Settings(model="tiny", stages="colocated"))
    assert colocated.deployments == ("Colocated",)


def test_equal_encoders_and_decoders_are_shared_and_denoisers_never(other: ModelInfo) -> None:
    first, second = plan_stages([TINY, other], SETTINGS)
    assert first == StageSet(TINY, "TextEncoder", "Denoiser", "VaeDecoder")
    assert second == StageSet(other, "TextEncoder", "Denoiser-other", "VaeDecoder")
    assert served_by([first, second], "TextEncoder") == [TINY, other]
    assert served_by([first, second], "Denoiser-other") == [other]
    twin = replace(TINY, id="twin")
    assert plan_stages([TINY, twin], SETTINGS)[1].denoise == "Denoiser-twin"


@pytest.mark.parametrize(
    ("file", "shared"),
    [
        ("text_encoder/open_clip_model.safetensors", {"VaeDecoder"}),
        ("text_encoder/open_clip_config.json", {"VaeDecoder"}),
        ("vae/diffusion_pytorch_model.safetensors", {"TextEncoder"}),
        ("vae/config.json", {"TextEncoder"}),
        ("transformer/diffusion_pytorch_model.safetensors", {"TextEncoder", "VaeDecoder"}),
    ],
)
def test_one_byte_makes_a_stage_ones_own(tmp_path: Path, file: str, shared: set[str]) -> None:
    """Sizes and names are equal, so only the content tells."""
    model = changed(TINY, tmp_path / "new", file)
    first, second = plan_stages([TINY, model], SETTINGS)
    assert {*first.deployments} & {*second.deployments} == shared


def test_links_to_one_folder_are_equal(tmp_path: Path) -> None:
    for part in ("text_encoder", "vae"):
        (tmp_path / part).symlink_to(ensure_tiny() / part)
    shutil.copy(ensure_tiny() / "model_index.json", tmp_path)
    model = replace(TINY, path=tmp_path)
    assert has_same_text_encoder(TINY, model) and has_same_autoencoder(TINY, model)


@pytest.mark.parametrize("more", ["text_encoder/more.json", "vae/sub/more.json"])
def test_a_file_more_makes_a_part_another(tmp_path: Path, more: str) -> None:
    folder = tmp_path / "new"
    shutil.copytree(TINY.path, folder)
    (folder / more).parent.mkdir(exist_ok=True)
    (folder / more).write_text("{}")
    model = replace(TINY, path=folder)
    is_same = {"text_encoder": has_same_text_encoder, "vae": has_same_autoencoder}[more.split("/")[0]]
    assert not is_same(TINY, model)


def test_models_that_read_texts_otherwise_share_no_encoder(tmp_path: Path) -> None:
    assert not has_same_text_encoder(TINY, replace(TINY, family="pixart-sigma"))
    shutil.copy(ensure_tiny() / "model_index.json", tmp_path)
    index = (tmp_path / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index.replace("{", '{"id2label": {"0": "tench"},', 1))
    shutil.copytree(TINY.path / "text_encoder", tmp_path / "text_encoder")
    assert not has_same_text_encoder(TINY, replace(TINY, path=tmp_path))


def test_a_decoder_for_images_of_another_size_is_not_shared() -> None:
    """The size decides the number of threads, on which bits may depend."""
    wide = replace(TINY, id="wide", sizes=((96, 64), *TINY.sizes))
    assert plan_stages([TINY, wide], SETTINGS)[1].decode == "VaeDecoder-wide"


def test_colocated_models_share_nothing(other: ModelInfo) -> None:
    sets = plan_stages([TINY, other], Settings(model="tiny", stages="colocated"))
    assert [stages.deployments for stages in sets] == [("Colocated",), ("Colocated-other",)]


def test_a_new_version_gets_a_denoiser_beside_the_old_one_and_its_place(other: ModelInfo) -> None:
    served = plan_stages([TINY, other], SETTINGS)
    [version] = plan_stages([other], SETTINGS, served)
    assert version == StageSet(other, "TextEncoder", "Denoiser-other-2", "VaeDecoder")
    assert with_set(served, version) == (served[0], version)
    assert without_model(served, "other") == (served[0],)
    third = replace(other, id="a third/one")
    [stages] = plan_stages([third], SETTINGS, served)
    assert stages.denoise == "Denoiser-a-third-one"
    assert with_set(served, stages) == (*served, stages)
