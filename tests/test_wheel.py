"""The wheel is complete, and works beside foreign packages named `models`, `pipeline` and `service`.

Python and Ray put the current folder on the import path, so that a foreign package there could be imported
instead.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.broken import tiny_without
from tests.live import serving, user_environment

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("models", "pipeline", "service")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing else of the checkout gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PARTS, "src"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    (built,) = out.glob("safelight-*.whl")
    return built


@pytest.fixture(scope="module")
def clean_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel; its dependencies are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    _pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # A path in a .pth file is added without reading the .pth files in that folder, such as editable installs.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """A folder with packages named like the three parts, which fail when they are imported."""
    for name in PARTS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('the foreign package {name}')\n")
    return tmp_path


def test_the_clean_environment_imports_the_wheel(clean_bin: Path, foreign_folder: Path) -> None:
    names = [f"safelight.{name}" for name in PARTS]
    files = ", ".join(f"{name}.__file__" for name in names)
    code = f"import {', '.join(names)}; print({files})"
    paths = [Path(file) for file in _run(clean_bin / "python", "-I", "-c", code, cwd=foreign_folder).split()]
    assert [path.parent.name for path in paths] == list(PARTS)
    assert all(clean_bin.parent in path.parents for path in paths), paths


def test_the_wheel_has_the_page(wheel: Path) -> None:
    folder = "service/http/page/files"
    names = {f"safelight/{folder}/{file.name}" for file in (ROOT / folder).iterdir()}
    assert names and names <= set(zipfile.ZipFile(wheel).namelist())


def test_generate_draws_beside_foreign_packages(clean_bin: Path, foreign_folder: Path) -> None:
    argv = ("generate", "a red apple", "--steps", "2", "-o", "apple.png")
    _run(clean_bin / "safelight", *argv, cwd=foreign_folder)
    with Image.open(foreign_folder / "apple.png") as image:
        assert image.format == "PNG"
        image.load()


def test_the_python_api_draws_beside_foreign_packages(clean_bin: Path, foreign_folder: Path) -> None:
    code = (
        "import safelight\n"
        "with safelight.Pipeline('tiny') as pipeline:\n"
        "    pipeline.generate('a red apple', num_inference_steps=2)[0].save('apple.png')\n"
    )
    _run(clean_bin / "python", "-c", code, cwd=foreign_folder)
    with Image.open(foreign_folder / "apple.png") as image:
        assert image.size == (64, 64)


def test_serve_draws_beside_foreign_packages(clean_bin: Path, foreign_folder: Path) -> None:
    safelight = clean_bin / "safelight"
    with serving(
        foreign_folder, "--stages", "colocated", safelight=safelight, env=user_environment()
    ) as service:
        response = httpx2.post(
            f"{service.url}/v1/images/generations",
            json={"prompt": "a red apple", "num_inference_steps": 2},
            timeout=120,
        )
    assert response.status_code == 200, response.text
    assert response.json()["data"][0]["b64_json"]


def test_serve_refuses_a_broken_checkpoint_beside_foreign_packages(
    clean_bin: Path, foreign_folder: Path
) -> None:
    model = tiny_without("proj_out.weight", foreign_folder)
    process = subprocess.run(
        [clean_bin / "safelight", "serve", "--model", model.name, "--port", "0"],
        cwd=foreign_folder,
        env=user_environment(),
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (2, "")
    [line] = process.stderr.splitlines()
    assert line == f"safelight serve: {model}/transformer: tensor proj_out.weight is missing"


def _pip(*arguments: str | Path) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", *arguments)


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    process = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=user_environment(), capture_output=True, text=True
    )
    assert process.returncode == 0, f"{' '.join(map(str, command))}\n{process.stdout}\n{process.stderr}"
    return process.stdout
