"""The family of a folder and the sizes that it serves, from its configurations alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError
from safelight.models.families.image_sizes import BUCKETS, list_sizes
from safelight.models.families.registry import FAMILIES, list_published_parts, recognise
from safelight.models.families.spec import Configs, Family
from safelight.models.find_checkpoint import EMBEDDED, EmbeddedModel, find_checkpoint
from safelight.models.inspection.expected_tensors import files_of
from safelight.models.text.t5 import FILES as T5_FILES
from safelight.pipeline.diffusion.solvers import SERVED

T5 = ["transformers", "T5EncoderModel"]
CLIP = ["transformers", "CLIPTextModelWithProjection"]
PUBLISHED = [family.name for family in FAMILIES if family.published is not None]


def by_name(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def published_configs(name: str) -> Configs:
    published = by_name(name).published
    assert published is not None
    return published.configs


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_configs(folder: Path, family: str, **transformer: object) -> Path:
    """Write the configurations of the published checkpoint of `family`, with changes of the transformer's."""
    configs = published_configs(family)
    text = {} if family == "dit" else {"text_encoder": T5 if "pixart" in family else CLIP}
    write_json(folder / "model_index.json", {"_class_name": by_name(family).pipeline} | text)
    write_json(folder / "transformer" / "config.json", configs["transformer"] | transformer)
    write_json(folder / "vae" / "config.json", configs["vae"])
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder_is_recognised(tmp_path: Path, name: str) -> None:
    assert recognise(write_configs(tmp_path, name)).name == name


def test_an_open_clip_tower_distinguishes_the_embedded_family_from_sigma(tmp_path: Path) -> None:
    folder = write_configs(tmp_path, "pixart-sigma")
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / CLIP_CONFIG).touch()
    assert recognise(folder).name == "pixart-clip"


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "FluxPipeline"},
        {},
        {"_class_name": "PixArtSigmaPipeline", "text_encoder": [None, None]},
        {"_class_name": "PixArtAlphaPipeline"},
    ],
)
def test_the_error_for_an_unknown_folder_lists_what_is_supported_in_one_line(
    tmp_path: Path, index: dict[str, Any]
) -> None:
    write_json(tmp_path / "model_index.json", index)
    with pytest.raises(CheckpointError) as error:
        recognise(tmp_path)
    [line] = str(error.value).splitlines()
    assert repr(index.get("_class_name")) in line
    assert all(f"{family.pipeline} {family.variant}".strip() in line for family in FAMILIES)


def test_the_native_square_comes_first_and_buckets_after_it(tmp_path: Path) -> None:
    family = by_name("pixart-sigma")
    assert list_sizes(family, write_configs(tmp_path / "1024", "pixart-sigma")) == ((1024, 1024), *BUCKETS)
    half = list_sizes(family, write_configs(tmp_path / "512", "pixart-sigma", sample_size=64))
    assert half[:2] == ((512, 512), (576, 448))
    assert len(half) == 1 + len(BUCKETS)


def test_a_bucket_that_is_not_whole_patches_is_left_out(tmp_path: Path) -> None:
    sizes = list_sizes(by_name("pixart-sigma"), write_configs(tmp_path, "pixart-sigma", sample_size=16))
    assert sizes == ((128, 128), (144, 112), (112, 144), (192, 80), (80, 192))
    assert all(side % 16 == 0 for size in sizes for side in size)


def test_a_bucket_beyond_the_table_of_positions_is_left_out(tmp_path: Path) -> None:
    sizes = list_sizes(by_name("sd3"), write_configs(tmp_path, "sd3", pos_embed_max_size=80))
    assert sizes == ((1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216))


def test_dit_serves_its_square_only_and_has_a_default_size(tmp_path: Path) -> None:
    assert list_sizes(by_name("dit"), write_configs(tmp_path, "dit")) == ((512, 512),)
    assert list_sizes(by_name("dit"), write_configs(tmp_path, "dit", sample_size=None)) == ((256, 256),)


def test_a_sample_size_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sample_size is '128', expected a positive whole number"):
        list_sizes(by_name("dit"), write_configs(tmp_path, "dit", sample_size="128"))


def test_more_sizes_of_an_embedded_model_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "emoji-128", EmbeddedModel("free", more_sizes=((96, 160),)))
    checkpoint = find_checkpoint("emoji-128")
    assert checkpoint.id == "emoji-128"
    assert checkpoint.sizes == ((128, 128), (96, 160))
    assert checkpoint.licence == "free"


def test_every_family_is_complete() -> None:
    for family in FAMILIES:
        assert family.solver in SERVED
        assert (family.extra == "t5") == any(files_of(part) is T5_FILES for part in family.parts)
        if family.published is not None:
            published, configs = family.published, family.published.configs
            assert list(published.parts) == [part.folder for part in family.parts]
            assert {part.name for part in published.parts.values()} <= set(list_published_parts())
            assert 8 * configs["transformer"]["sample_size"] in family.sides
            assert family.origin


def test_the_number_of_text_states_is_as_published() -> None:
    expected = {
        "pixart-alpha": 120, "pixart-sigma": 300, "sd3": 333, "sd3.5-medium": 333, "sd3.5-large": 333,
        "dit": 0,
    }  # fmt: skip
    numbers = {name: by_name(name).conditioning.num_states(published_configs(name)) for name in PUBLISHED}
    assert numbers == expected


def test_families_are_read_without_torch() -> None:
    code = (
        "import sys; import safelight.models.families.registry, safelight.pipeline.catalog.served_models; "
        "sys.exit(' '.join({'torch', 'numpy', 'transformers'} & set(sys.modules)) or None)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_alpha_at_512_serves_squares_only(tmp_path: Path) -> None:
    family = by_name("pixart-alpha")
    assert list_sizes(family, write_configs(tmp_path / "512", "pixart-alpha", sample_size=64)) == (
        (512, 512),
    )
    assert len(list_sizes(family, write_configs(tmp_path / "1024", "pixart-alpha"))) == 9
