"""The pinned versions in requirements/ satisfy pyproject.toml; `make lock` renews them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.manifests import PROJECT, ROOT, pins

EXTRAS = {  # of each file, as in the Makefile
    "serve": (),
    "dev": ("dev", "docs", "load", "mcp", "otel", "postgres", "t5", "valkey"),
    "image": ("mcp", "otel", "postgres", "t5", "valkey"),
    "image-cuda": ("cuda", "mcp", "otel", "postgres", "t5", "valkey"),
}
FILES = (*EXTRAS, "clients")  # clients.in lists what clients.txt pins
NODE = ROOT / "tests/clients/node"
OF_TORCH = {"torch", "torchvision"}  # installed first, from TORCH_SPEC


@pytest.mark.parametrize("name", EXTRAS)
def test_every_dependency_is_pinned_to_an_allowed_version(name: str) -> None:
    optional = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS[name] for line in optional[extra])]
    versions = pins(name)
    for requirement in map(Requirement, lines):
        package = canonicalize_name(requirement.name)
        if package not in OF_TORCH:
            assert requirement.specifier.contains(versions[package]), f"{requirement}: run `make lock`"


def test_every_client_is_pinned_to_an_allowed_version() -> None:
    text = (ROOT / "requirements/clients.in").read_text(encoding="utf-8")
    requirements = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    versions = pins("clients")
    assert requirements and all(
        requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
        for requirement in requirements
    )


def test_the_packages_of_node_are_locked_and_name_no_registry() -> None:
    lock = json.loads((NODE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    project = lock.pop("")
    assert project["dependencies"] == json.loads((NODE / "package.json").read_text())["dependencies"]
    assert lock.keys() >= {f"node_modules/{name}" for name in project["dependencies"]}
    for package in lock.values():
        assert package["integrity"].startswith("sha512-") and "resolved" not in package


@pytest.mark.parametrize("name", FILES)
def test_every_pin_has_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    assert [line for line in text.splitlines() if line.strip() and "--hash=sha256:" not in line] == []


@pytest.mark.parametrize("name", EXTRAS)
def test_torch_is_left_to_torch_spec(name: str) -> None:
    of_torch = {
        package for package in pins(name) if package.startswith(("nvidia-", "cuda-", "triton", "torch"))
    }
    assert of_torch <= {"nvidia-cuda-runtime-cu12"}, "a CPU build of torch needs none of them"


def test_files_agree_on_versions() -> None:
    dev = pins("dev")
    for name in ("serve", "image"):
        assert {package: v for package, v in pins(name).items() if dev.get(package) != v} == {}


def test_the_makefile_locks_these_files_for_this_torch() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, extras in EXTRAS.items():
        options = "".join(f"--extra {extra} " for extra in extras)
        assert f"\t$(LOCK) {options}-o requirements/{name}.txt\n" in makefile
    assert "\t$(COMPILE) requirements/clients.in -o requirements/clients.txt\n" in makefile
    (spec,) = re.findall(r"^TORCH_SPEC \?= (.*)$", makefile, re.MULTILINE)
    assert (ROOT / "requirements" / "torch.txt").read_text().split() == spec.split()


def test_the_bill_of_materials_is_of_what_is_shipped() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (shipped,) = re.findall(r"^SHIPPED := (.*)$", makefile, re.MULTILINE)
    assert set(shipped.split()) == EXTRAS.keys() - {"dev"}
    (command,) = re.findall(r"cyclonedx-py (requirements - .*?) -o ", makefile.replace("\\\n", ""), re.DOTALL)
    text = (ROOT / "requirements/serve.txt").read_text(encoding="utf-8")
    package = text[: text.index("\n", text.rindex("sha256", 0, text.index("\naiohttp==")))]  # the first
    tool = str(Path(sys.executable).with_name("cyclonedx-py"))
    result = subprocess.run(
        [tool, *command.split()],
        input=f"{package}\n" + (ROOT / "requirements/torch.txt").read_text(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    bill = json.loads(result.stdout)
    components = {component["name"]: component for component in bill["components"]}
    name, _, version = package.split()[0].partition("==")
    assert bill["metadata"]["component"]["name"] == "safelight"
    assert components.keys() == OF_TORCH | {name} and components[name]["version"] == version
    hashes = components[name]["externalReferences"][0]["hashes"]
    assert sorted(digest["content"] for digest in hashes) == sorted(re.findall("sha256:([0-9a-f]+)", package))
