"""Work folders for the tests of the recipe's stages."""

from pathlib import Path

import pytest

from safelight.models.recipes.emoji import (
    dit,
    natural,
    natural_text,
    teacher,
    views,
)
from tests.models.recipes.small_data import CONCEPTS, SMALL, embed, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stages leave; tests only read it."""
    work = tmp_path_factory.mktemp("inputs")
    write_inputs(work)
    return work


@pytest.fixture
def work(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `inputs` whose large files are shared, with small batches and a small DiT."""
    for file in inputs.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "dit.ckpt").unlink()
    (tmp_path / "dit.ckpt").write_bytes((inputs / "dit.ckpt").read_bytes())
    build = dit.build
    monkeypatch.setattr(dit, "build", lambda: build(SMALL))
    monkeypatch.setattr(dit, "CONFIG", SMALL)
    monkeypatch.setattr(teacher, "embed", embed)
    captions = natural.training_captions()
    of_concepts = {concept.hexcode: captions[concept.hexcode] for concept in CONCEPTS}
    monkeypatch.setattr(natural, "training_captions", lambda: of_concepts)
    # Of so few images a share would leave some sizes without a coloured background.
    monkeypatch.setattr(views, "NUM_COLOURS", dict.fromkeys(views.NUM_COLOURS, 1.0))
    for name, value in (("NATURAL", 6), ("SOFT", 3), ("GRAMMAR", 4), ("READ", 2), ("QUERY_IMAGES", 2)):
        monkeypatch.setattr(natural_text, name, value)
    return tmp_path
