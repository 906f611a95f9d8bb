"""The Dockerfiles, as far as they go without a daemon: what they say, and the shell in them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from safelight.service.local import ENVIRONMENT
from tests.deploy.manifests import DOCKERFILES, PROJECT, ROOT, argument, instructions

pytestmark = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
KEEP_OWN = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "RAY_DISABLE_IMPORT_WARNING",
}  # in a cluster a stage without a GPU must not see one


def values(dockerfile: Path, name: str) -> list[str]:
    return [one.value for one in instructions(dockerfile) if one.name == name]


def final_stage(dockerfile: Path) -> list:
    steps = instructions(dockerfile)
    return steps[max(k for k, one in enumerate(steps) if one.name == "FROM") :]


def environment(dockerfile: Path) -> dict[str, str]:
    pairs = (pair for one in final_stage(dockerfile) if one.name == "ENV" for pair in one.value.split())
    return {name: value.strip('"') for name, value in (pair.split("=", 1) for pair in pairs)}


def test_every_base_image_has_a_version(dockerfile):
    stages: set[str] = set()
    bases = [value.split() for value in values(dockerfile, "FROM")]
    assert len(bases) == 2, "one stage that builds, one that runs"
    for image, *alias in bases:
        if image not in stages:
            assert re.fullmatch(r"[\w./-]+(:[\w.-]+|@sha256:[0-9a-f]{64})", image), image
            assert not image.endswith(":latest")
        stages |= set(alias[1:])
    assert len({image for image, *_ in bases}) == 1, (
        "the virtual environment points at the Python that built it"
    )


def test_nobody_is_root_who_runs_it(dockerfile):
    stage = final_stage(dockerfile)
    (user,) = (one.value for one in stage if one.name == "USER")
    assert user == "10001:10001"
    after = [one.name for one in stage][[one.name for one in stage].index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    (adding,) = (one.value for one in stage if one.name == "RUN" and "useradd" in one.value)
    assert "--uid 10001 --gid 10001 --create-home" in adding and "groupadd --gid 10001" in adding


def test_it_serves_to_all_and_hears_when_it_is_to_stop(dockerfile):
    assert json.loads(values(dockerfile, "CMD")[-1]) == ["safelight", "serve", "--host", "0.0.0.0"]
    assert json.loads(values(dockerfile, "ENTRYPOINT")[-1]) == ["tini", "--"], (
        "signals go to the service, not to a shell"
    )
    assert values(dockerfile, "EXPOSE") == ["8000"]


def test_its_health_is_readiness(dockerfile):
    (check,) = values(dockerfile, "HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["bash", "-c"]
    assert command[2].endswith("/readyz") and "${SAFELIGHT_PORT:-8000}" in command[2]
    assert "--start-period=300s" in check


def test_the_shell_of_the_health_check_takes_the_port_from_the_environment(dockerfile):
    (check,) = values(dockerfile, "HEALTHCHECK")
    script = json.loads(check[check.index("[") :])[2].replace("curl", "echo")
    told = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": "/bin:/usr/bin", "SAFELIGHT_PORT": "81"},
        capture_output=True,
        text=True,
    )
    assert told.stdout.split()[-1] == "http://127.0.0.1:81/readyz"


def test_what_is_copied_is_there_and_not_ignored(dockerfile):
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    copied = {
        source
        for value in values(dockerfile, "COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert copied == allowed
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    # setuptools reads these names from pyproject.toml
    assert copied >= {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}


def test_versions_are_those_of_the_project(dockerfile):
    assert f"TORCH_SPEC ?= {argument(dockerfile, 'TORCH_SPEC')}\n" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )
    (label,) = values(dockerfile, "LABEL")
    assert f'image.version="{PROJECT["version"]}"' in label
    assert f'image.licenses="{PROJECT["license"]}"' in label
    assert set(argument(dockerfile, "EXTRAS").split(",")) <= set(PROJECT["optional-dependencies"])


def test_no_tools_of_developers_are_installed(dockerfile):
    assert not {"dev", "load", "docs", "recipe"} & set(argument(dockerfile, "EXTRAS").split(","))


def test_nothing_is_kept_that_only_installing_needs(dockerfile):
    stage = final_stage(dockerfile)
    assert not any("pip install" in one.value for one in stage)
    installing = [
        one.value for one in instructions(dockerfile) if one.name == "RUN" and "apt-get" in one.value
    ]
    assert installing and all(
        "rm -rf /var/lib/apt/lists/*" in value and "--no-install-recommends" in value for value in installing
    )
    assert "PIP_NO_CACHE_DIR=1" in " ".join(values(dockerfile, "ENV"))


def test_a_pod_of_kuberay_finds_what_it_calls(dockerfile):
    (installing,) = (
        one.value for one in final_stage(dockerfile) if one.name == "RUN" and "apt-get" in one.value
    )
    assert {"bash", "wget", "curl", "tini"} <= set(installing.split())
    assert environment(dockerfile)["PATH"].startswith("/opt/safelight/bin:")
    (profile,) = (
        one.value for one in final_stage(dockerfile) if one.name == "RUN" and "profile.d" in one.value
    )
    assert "/opt/safelight/bin:$PATH" in profile


def test_ray_runs_as_in_safelight_serve(dockerfile):
    inside = environment(dockerfile)
    assert inside["PYTHONUNBUFFERED"] == "1"
    assert {name: inside.get(name) for name in ENVIRONMENT.keys() - KEEP_OWN} == {
        name: value for name, value in ENVIRONMENT.items() if name not in KEEP_OWN
    }


def test_the_requirements_are_those_of_the_project(dockerfile, tmp_path):
    """The line of Python in the Dockerfile, run."""
    (installing,) = (
        one.value for one in instructions(dockerfile) if one.name == "RUN" and "tomllib" in one.value
    )
    program = re.search(r"-c '([^']*)'", installing)[1]
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    extras = argument(dockerfile, "EXTRAS")
    told = subprocess.run(
        [sys.executable, "-c", program, extras], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    optional = PROJECT["optional-dependencies"]
    assert told.splitlines() == [
        *PROJECT["dependencies"],
        *(line for extra in extras.split(",") for line in optional[extra]),
    ]
    none = subprocess.run(
        [sys.executable, "-c", program, ""], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert none.splitlines() == PROJECT["dependencies"]


def test_the_python_of_the_image_is_allowed(dockerfile):
    (base,) = {value.split()[0] for value in values(dockerfile, "FROM")}
    python = re.search(r"python:(3\.\d+)-", base)
    version = python[1] if python else {"ubuntu24.04": "3.12"}[base.rsplit("-", 1)[1]]
    low, high = re.fullmatch(r">=(3\.\d+),<(3\.\d+)", PROJECT["requires-python"]).groups()
    assert (
        tuple(map(int, low.split(".")))
        <= tuple(map(int, version.split(".")))
        < tuple(map(int, high.split(".")))
    )


def test_the_two_differ_in_the_gpu_only(dockerfile):
    """Whoever changes one changes both."""
    (other,) = (file for file in DOCKERFILES if file != dockerfile)
    ours, theirs = ({(one.name, one.value) for one in instructions(file)} for file in (dockerfile, other))
    assert {name for name, _ in ours - theirs} <= {"FROM", "RUN", "ARG", "ENV"}
    for name in ("TORCH_SPEC", "RAY_VERSION", "EXTRA_PACKAGES"):
        assert argument(dockerfile, name) == argument(other, name)
