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
# What a CUDA build of torch, torchvision and pytest bring.
ON_THE_MACHINE = (
    "torch", "torchvision", "triton", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock",
    "fsspec", "typing-extensions", "numpy", "pillow", "setuptools", "pytest", "pluggy", "iniconfig",
    "packaging", "pygments",
)  # fmt: skip
# Imports what the steps import where no other package exists.
IMPORTS = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions

packages = {name.lower().replace("_", "-") for name in sys.argv[1:]}
allowed = {
    module
    for module, names in packages_distributions().items()
    if any(name.lower().replace("_", "-").replace(".", "-") in packages for name in names)
}

class OnlyAllowed:
    def find_spec(name, path=None, target=None):
        if path is None and name not in allowed and (spec := PathFinder.find_spec(name)):
            if "site-packages" in (spec.origin or str(spec.submodule_search_locations)):
                raise ModuleNotFoundError(f"{name} is not carried", name=name)

sys.meta_path.insert(0, OnlyAllowed)
import pytest
import safelight.service.cli.bench, safelight.service.cli.doctor
import safelight.pipeline.benchmark.random_weights, safelight.pipeline.benchmark.trace_replay
import safelight.pipeline.calibration.diagnose
import tests.gpu.test_kernels, tests.gpu.test_engine, tests.gpu.test_service
from safelight.pipeline.assembly.encoder import import_libraries
from safelight.pipeline.catalog.served_models import find_model
import_libraries(find_model("emoji-128"))
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


def test_the_steps_import_nothing_else() -> None:
    """With the packages that are carried, and those of the machine."""
    command = [sys.executable, "-c", IMPORTS, *PACKAGES, *ON_THE_MACHINE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]
