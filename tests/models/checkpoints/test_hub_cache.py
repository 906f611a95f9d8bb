"""Models in a Hugging Face cache are found by folder or id, named by their id, and read without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.find_checkpoint import ensure_tiny, find_checkpoint, find_model_folder
from safelight.pipeline.assembly.check import check_folder
from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from tests.models.checkpoints.cached_models import REVISION, write_snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hugging Face cache of this machine, with the model org/name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_snapshot(tmp_path / "hub", ensure_tiny())
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "place",
    [
        f"models--org--name/snapshots/{REVISION}",
        f"models--org--name/snapshots/{REVISION}/",
        "models--org--name/snapshots",
        "models--org--name",
        "models--org--name/../models--org--name",
    ],
)
def test_a_folder_of_the_cache_has_the_id_and_the_snapshot(cache: Path, place: str) -> None:
    checkpoint = find_checkpoint(f"{cache}/{place}")
    assert checkpoint.id == "org/name"
    assert checkpoint.folder == cache / "models--org--name" / "snapshots" / REVISION
    assert find_model(f"{cache}/{place}").id == "org/name"


def test_links_into_blobs_are_read(cache: Path) -> None:
    assert (cache / "models--org--name" / "snapshots" / REVISION / "model_index.json").is_symlink()
    report = check_folder(str(cache / "models--org--name"))
    assert (report.faults, report.id) == ((), "org/name")


def test_a_link_to_a_snapshot_has_its_id(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(cache / "models--org--name")
    assert find_model_folder(str(tmp_path / "mine")).id == "org/name"


@pytest.mark.parametrize(
    ("folder", "model_id"), [("models--name", "name"), ("models--org--a.b_c-1", "org/a.b_c-1")]
)
def test_ids_of_other_models(cache: Path, folder: str, model_id: str) -> None:
    snapshot = write_snapshot(cache, ensure_tiny(), folder)
    assert find_model_folder(str(snapshot)).id == model_id
    assert find_model_folder(model_id).path == snapshot


def test_a_plain_folder_with_the_name_of_a_cached_one_is_read_itself(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    folder.symlink_to(ensure_tiny())
    assert find_model_folder(str(folder)).id == ensure_tiny().name
    folder.unlink()
    folder.mkdir()
    for path in ensure_tiny().iterdir():
        (folder / path.name).symlink_to(path)
    model = find_model_folder(str(folder))
    assert (model.id, model.path) == ("org/name", folder)


@pytest.mark.parametrize("revision", ["main", "other"])
def test_refs_main_chooses_among_snapshots(cache: Path, revision: str) -> None:
    write_snapshot(cache, ensure_tiny(), revision="1" * 40, main=revision == "other")
    expected = REVISION if revision == "main" else "1" * 40
    assert find_model_folder("org/name").path.name == expected


@pytest.mark.parametrize(
    ("main", "why"),
    [(None, "refs/main is missing"), ("2" * 40, f"refs/main names {'2' * 40}, which is missing")],
)
def test_several_snapshots_without_a_choice_are_named(cache: Path, main: str | None, why: str) -> None:
    other = write_snapshot(cache, ensure_tiny(), revision="1" * 40, main=False)
    refs_main = cache / "models--org--name" / "refs" / "main"
    refs_main.unlink() if main is None else refs_main.write_text(f"{main}\n")
    with pytest.raises(CheckpointError) as refusal:
        find_model_folder("org/name")
    assert f"has 2 snapshots and {why}" in str(refusal.value)
    assert all(str(path) in str(refusal.value) for path in (other, other.parent / REVISION))
    assert find_model_folder(str(other)).path == other


def test_the_only_snapshot_needs_no_refs(cache: Path) -> None:
    (cache / "models--org--name" / "refs" / "main").unlink()
    assert find_model_folder("org/name").path.name == REVISION


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_datasets_and_spaces_are_refused_by_name(cache: Path, kind: str) -> None:
    snapshot = write_snapshot(cache, ensure_tiny(), f"{kind}s--org--other")
    for folder in (snapshot, snapshot.parent, snapshot.parent.parent):
        with pytest.raises(
            UnknownModel, match=f"is the {kind} org/other in a Hugging Face cache, not a model"
        ):
            find_model(str(folder))
    with pytest.raises(UnknownModel, match=f"the Hugging Face cache holds a {kind} of that name"):
        find_model("org/other")


@pytest.mark.parametrize("name", ["org/absent", "org/name/more", "../name", "org//name"])
def test_an_id_that_is_not_in_the_cache_is_unknown(cache: Path, name: str) -> None:
    with pytest.raises(
        UnknownModel, match="is neither a folder nor one of emoji-128, emoji-128-turbo, tiny"
    ) as refusal:
        find_model(name)
    assert (f"nor in the Hugging Face cache {cache}" in str(refusal.value)) == (name == "org/absent")


def test_a_folder_precedes_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(ensure_tiny())
    monkeypatch.chdir(tmp_path)
    assert find_model_folder("org/name").path == ensure_tiny()


@pytest.mark.parametrize(
    "file", ["vae/diffusion_pytorch_model.safetensors", "transformer/config.json", "model_index.json"]
)
def test_a_link_without_its_blob_is_named(cache: Path, file: str) -> None:
    snapshot = find_model_folder("org/name").path
    blob = (snapshot / file).resolve()
    blob.unlink()
    faults = check_folder("org/name").faults
    assert any(
        fault.startswith(f"{snapshot / file} is a link to ../")
        and fault.endswith(f"{blob.name}, which is missing: the download is not complete")
        for fault in faults
    ), faults


@pytest.mark.parametrize("is_local", [False, True])
def test_an_unfinished_download_is_named(cache: Path, tmp_path: Path, is_local: bool) -> None:
    """In the cache as a blob, in a folder of `hf download --local-dir` beside its metadata."""
    folder = find_model_folder("org/name").path
    unfinished = cache / "models--org--name" / "blobs" / "abc.incomplete"
    if is_local:
        folder = tmp_path / "local"
        folder.mkdir()
        for path in ensure_tiny().rglob("*"):
            place = folder / path.relative_to(ensure_tiny())
            place.mkdir() if path.is_dir() else place.write_bytes(path.read_bytes())
        unfinished = folder / ".cache/huggingface/download/vae/abc.incomplete"
        unfinished.parent.mkdir(parents=True)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    unfinished.write_bytes(b"")
    [fault] = check_folder(str(folder)).faults
    assert fault == (
        f"{folder}/vae/diffusion_pytorch_model.safetensors is missing: the download is not complete, "
        f"{unfinished} is unfinished"
    )


def test_a_repository_without_snapshots_is_named(cache: Path) -> None:
    (cache / "models--org--begun" / "blobs").mkdir(parents=True)
    with pytest.raises(UnknownModel, match="models--org--begun: a snapshot is missing$"):
        find_model("org/begun")
    (cache / "models--org--begun" / "blobs" / "abc.incomplete").touch()
    with pytest.raises(UnknownModel, match=r"a snapshot is missing: .*abc\.incomplete is unfinished"):
        find_model("org/begun")


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_the_environment_says_where_the_cache_is(tmp_path: Path, variable: str) -> None:
    below = {"HF_HOME": "hub", "HF_HUB_CACHE": "", "XDG_CACHE_HOME": "huggingface/hub"}
    write_snapshot(tmp_path / below.get(variable, ".cache/huggingface/hub"), ensure_tiny())
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGINGFACE", "XDG"))
    }
    script = (
        "import socket; socket.socket.connect = None; "  # any use of a network would fail
        "from safelight.pipeline.catalog.served_models import find_model; print(find_model('org/name').path)"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=environment | {variable: str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.strip().endswith(f"models--org--name/snapshots/{REVISION}"), process.stderr
