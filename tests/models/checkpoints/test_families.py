"""Which family claims a folder, and what it draws: by its configurations alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safelight.models.checkpoints.families import (
    BUCKETS,
    EMBEDDED,
    FAMILIES,
    Embedded,
    Family,
    find_checkpoint,
    list_sizes,
    recognise,
)
from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError
from safelight.models.checkpoints.published import PARTS, PUBLISHED
from safelight.models.inspection.expected_tensors import PART_KINDS
from safelight.pipeline.diffusion.solvers import SERVED

T5 = ["transformers", "T5EncoderModel"]


def by_name(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def write_json(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_configs(folder: Path, family: str, **transformer: object) -> Path:
    """The configurations of the published checkpoint of `family`, with `transformer`'s changes."""
    published = PUBLISHED[family]
    text = (
        {}
        if family == "dit"
        else {"text_encoder": T5 if "pixart" in family else ["transformers", "CLIPTextModelWithProjection"]}
    )
    write_json(folder / "model_index.json", {"_class_name": by_name(family).pipeline} | text)
    write_json(folder / "transformer" / "config.json", published.transformer | transformer)
    write_json(folder / "vae" / "config.json", published.vae)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder_is_recognised(tmp_path: Path, name: str) -> None:
    assert recognise(write_configs(tmp_path, name)).name == name


def test_an_open_clip_tower_tells_ours_from_sigma(tmp_path: Path) -> None:
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
def test_another_folder_is_told_what_is_supported_in_one_line(tmp_path: Path, index: dict) -> None:
    write_json(tmp_path / "model_index.json", index)
    with pytest.raises(CheckpointError) as refused:
        recognise(tmp_path)
    [line] = str(refused.value).splitlines()
    assert repr(index.get("_class_name")) in line
    assert all(f"{family.pipeline} {family.mark}".strip() in line for family in FAMILIES)


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


def test_dit_draws_its_square_alone_and_says_its_size_by_default(tmp_path: Path) -> None:
    assert list_sizes(by_name("dit"), write_configs(tmp_path, "dit")) == ((512, 512),)
    assert list_sizes(by_name("dit"), write_configs(tmp_path, "dit", sample_size=None)) == ((256, 256),)


def test_a_size_that_is_no_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sample_size is '128', expected a positive whole number"):
        list_sizes(by_name("dit"), write_configs(tmp_path, "dit", sample_size="128"))


def test_more_sizes_of_an_embedded_model_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "emoji-128", Embedded("free", more_sizes=((96, 160),)))
    found = find_checkpoint("emoji-128")
    assert (found.id, found.sizes, found.licence) == ("emoji-128", ((128, 128), (96, 160)), "free")


def test_every_family_is_whole() -> None:
    for family in FAMILIES:
        assert family.solver in SERVED
        assert {part.kind for part in family.parts} <= set(PART_KINDS)
        assert (family.extra == "t5") == any(part.kind == "t5" for part in family.parts)
        if family.name in PUBLISHED:
            published = PUBLISHED[family.name]
            assert list(published.parts) == [part.folder for part in family.parts]
            assert set(published.parts.values()) <= set(PARTS)
            assert 8 * published.transformer["sample_size"] in family.sides
            assert family.origin
            assert family.text_tokens in (None, published.num_states)


def test_it_is_read_without_torch() -> None:
    heavy = "{'torch', 'numpy', 'transformers'}"
    code = f"import sys; import safelight.models.checkpoints.families, safelight.pipeline.catalog.served_models; sys.exit(' '.join({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_alpha_at_512_was_trained_on_squares_alone(tmp_path: Path) -> None:
    family = by_name("pixart-alpha")
    assert list_sizes(family, write_configs(tmp_path / "512", "pixart-alpha", sample_size=64)) == (
        (512, 512),
    )
    assert len(list_sizes(family, write_configs(tmp_path / "1024", "pixart-alpha"))) == 9
