"""What is carried to a GPU without network: the tree that starts there, and every package that it imports."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.gpu.__main__ import NO_CUDA

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "gpu"
PACKAGES = [line for line in (FOLDER / "packages.txt").read_text().splitlines() if line[:1] != "#"]
PAGE = (ROOT / "deploy" / "gpu.md").read_text()
# Packages that a CUDA build of torch brings, torchvision, pytest, and torch's own dependencies.
ON_THE_MACHINE = {
    "torch", "torchgen", "torchvision", "functorch", "triton", "sympy", "mpmath", "networkx", "jinja2",
    "markupsafe", "filelock", "fsspec", "typing_extensions", "numpy", "pillow", "setuptools", "pytest",
    "pluggy", "iniconfig", "packaging", "pygments", "idna", "certifi",
}  # fmt: skip
# Names of modules that differ from those of their packages.
PACKAGE_OF = {"pil": "pillow", "dotenv": "python-dotenv", "multipart": "python-multipart", "cv2": "opencv"}
# Used where they are installed, and not needed.
OPTIONAL = {"opentelemetry", "mcp", "xformers", "transformers", "timm", "diffusers", "matplotlib", "ray"}
IMPORTS = """
import sys
before = set(sys.modules)
import pytest, torch, torchvision
import safelight.service.cli.bench, safelight.service.cli.doctor
import safelight.pipeline.benchmark.random_weights, safelight.pipeline.benchmark.trace_replay
import safelight.pipeline.calibration.diagnose
import tests.clients.service
from safelight.pipeline.assembly.encoder import import_libraries
from safelight.pipeline.catalog.served_models import find_model
import_libraries(find_model("emoji-128"))
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(*sorted({name.partition(".")[0] for name, file in files.items() if "site-packages" in file}))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without wheels."""
    out = tmp_path_factory.mktemp("bundle")
    subprocess.run([FOLDER / "bundle.sh", "--tree", out], check=True, capture_output=True)
    return out


def test_the_tree_starts_where_it_is_unpacked(bundle: Path) -> None:
    """As far as it comes without a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([bundle / "run.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == NO_CUDA, done.stderr
    assert "torch sees none here" in done.stderr


def test_the_tree_has_the_served_parts_and_little_else(bundle: Path) -> None:
    with tarfile.open(bundle / "tree.tar.gz") as tree:
        names = set(tree.getnames())
    weights = "models/weights/emoji-128"
    assert {f"{weights}/{part}/config.json" for part in ("transformer", "vae")} <= names
    assert "src/safelight/models" in names and "tests/gpu/__main__.py" in names
    assert not [name for name in names if "/scorer/" in name or "gallery" in name and weights in name]
    limit = re.search(r"at most (\d+) MB", PAGE)
    assert limit and (bundle / "tree.tar.gz").stat().st_size < int(limit[1]) * 1e6


def test_every_package_is_pinned() -> None:
    pins = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE))
    assert set(PACKAGES) - pins == set()
    assert sorted(PACKAGES) == PACKAGES


def test_every_import_is_carried_or_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = {name.lower() for name in done.stdout.split() if not name.startswith("_")}
    packages = {PACKAGE_OF.get(name, name).replace("_", "-") for name in modules}
    known = {name.replace("_", "-") for name in ON_THE_MACHINE | OPTIONAL}
    assert packages - known - set(PACKAGES) - {"open-clip", "safelight"} == set()
