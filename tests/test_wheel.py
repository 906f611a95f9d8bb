"""The wheel is complete, and works in a folder that holds packages named `models`, `pipeline` and `service`.

Ray puts the driver's current folder first on the import path of every worker, so such a folder would be imported from.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.live import serving

ROOT = Path(__file__).resolve().parents[1]
OURS = ("models", "pipeline", "service")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built from a copy, so that nothing left over in the checkout gets in and nothing stays behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*OURS, "src"):
        shutil.copytree(
            ROOT / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    _run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        source,
    )
    (built,) = out.glob("safelight-*.whl")
    return built


@pytest.fixture(scope="module")
def clean_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds our wheel and borrows everything else from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    _run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    )
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # Only the folder: the .pth files inside it, an editable install of ours among them, are not read through this line.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """A folder in which somebody else has packages of our names, which must not be imported."""
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"raise ImportError('somebody else has a package {name}')\n"
        )
    return tmp_path


def test_the_clean_environment_imports_the_wheel(clean_bin: Path, foreign_folder: Path):
    names = [f"safelight.{name}" for name in OURS]
    code = f"import {', '.join(names)}; print({' + chr(10) + '.join(f'{name}.__file__' for name in names)})"
    files = _run(clean_bin / "python", "-I", "-c", code, cwd=foreign_folder).split()
    assert [Path(f).parent.name for f in files] == list(OURS)
    assert all(clean_bin.parent in Path(f).parents for f in files), files


def test_generate_draws_beside_foreign_packages(clean_bin: Path, foreign_folder: Path):
    _run(
        clean_bin / "safelight",
        "generate",
        "a red apple",
        "--steps",
        "2",
        "-o",
        "apple.png",
        cwd=foreign_folder,
    )
    with Image.open(foreign_folder / "apple.png") as image:
        assert image.format == "PNG"
        image.load()


def test_serve_draws_beside_foreign_packages(clean_bin: Path, foreign_folder: Path):
    with serving(
        foreign_folder, "--stages", "colocated", safelight=clean_bin / "safelight", env=_environment()
    ) as service:
        answer = httpx.post(
            f"{service.url}/v1/images/generations",
            json={"prompt": "a red apple", "num_inference_steps": 2},
            timeout=120,
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"]


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
