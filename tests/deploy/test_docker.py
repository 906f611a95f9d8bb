"""The Dockerfiles, tested without a daemon: their instructions, and the shell scripts in them."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from safelight.service.local import ENVIRONMENT
from safelight.service.runtime.environment import NO_PROXY, SPIN_COUNT, bypass_proxies
from tests.deploy.manifests import DOCKERFILES, PROJECT, ROOT, Instruction, argument, instructions, pins

pytestmark = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
# Only for `safelight serve`: in a cluster, a stage without a GPU must not see one.
SERVE_ONLY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "RAY_DISABLE_IMPORT_WARNING",
    "RAY_preload_python_modules",
}


def values(dockerfile: Path, name: str) -> list[str]:
    return [step.value for step in instructions(dockerfile) if step.name == name]


def final_stage(dockerfile: Path) -> list[Instruction]:
    steps = instructions(dockerfile)
    return steps[max(k for k, step in enumerate(steps) if step.name == "FROM") :]


def environment(dockerfile: Path) -> dict[str, str]:
    pairs = (pair for step in final_stage(dockerfile) if step.name == "ENV" for pair in step.value.split())
    return {name: value.strip('"') for name, value in (pair.split("=", 1) for pair in pairs)}


def test_every_base_image_has_a_version(dockerfile: Path) -> None:
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


def test_the_container_does_not_run_as_root(dockerfile: Path) -> None:
    stage = final_stage(dockerfile)
    (user,) = (step.value for step in stage if step.name == "USER")
    assert user == "10001:10001"
    after = [step.name for step in stage][[step.name for step in stage].index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    (adding,) = (step.value for step in stage if step.name == "RUN" and "useradd" in step.value)
    assert "--uid 10001 --gid 10001 --create-home" in adding and "groupadd --gid 10001" in adding


def test_it_serves_on_all_interfaces_and_receives_signals(dockerfile: Path) -> None:
    assert json.loads(values(dockerfile, "CMD")[-1]) == ["safelight", "serve", "--host", "0.0.0.0"]
    assert json.loads(values(dockerfile, "ENTRYPOINT")[-1]) == ["tini", "--"], (
        "signals go to the service, not to a shell"
    )
    assert values(dockerfile, "EXPOSE") == ["8000"]


def test_its_health_check_asks_for_readiness(dockerfile: Path) -> None:
    (check,) = values(dockerfile, "HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["bash", "-c"]
    assert command[2].endswith("/readyz")
    assert "--start-period=300s" in check


@pytest.mark.parametrize(
    ("port", "expected_port"),
    [("81", 81), (None, 8000), ("", 8000), ("tcp://10.43.1.39:8000", 8000), ("tcp://10.43.1.39:81", 8000)],
)
def test_the_health_check_asks_its_own_port_and_no_proxy(
    dockerfile: Path, tmp_path: Path, port: str | None, expected_port: int
) -> None:
    """curl itself is replaced by a script that prints what it was called with."""
    (check,) = values(dockerfile, "HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    curl.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/bin:/usr/bin"} | ({"SAFELIGHT_PORT": port} if port is not None else {})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    arguments = done.stdout.splitlines()
    assert arguments[-1] == f"http://127.0.0.1:{expected_port}/readyz"
    assert arguments[arguments.index("--noproxy") + 1] == "*"


def test_processes_of_the_image_reach_each_other_without_a_proxy(dockerfile: Path) -> None:
    """KubeRay's probes call wget."""
    assert {name: environment(dockerfile)[name] for name in NO_PROXY} == bypass_proxies({})


def test_copied_files_exist_and_are_not_ignored(dockerfile: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    copied = {
        source
        for value in values(dockerfile, "COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert {source.split("/")[0] for source in copied} == allowed
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    # setuptools reads these names from pyproject.toml
    assert copied >= {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}


def test_versions_are_those_of_the_project(dockerfile: Path) -> None:
    assert f"TORCH_SPEC ?= {argument(dockerfile, 'TORCH_SPEC')}\n" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )
    (label,) = values(dockerfile, "LABEL")
    assert f'image.version="{PROJECT["version"]}"' in label
    assert f'image.licenses="{PROJECT["license"]}"' in label


def test_the_dependencies_are_pinned_by_hash(dockerfile: Path) -> None:
    """tests/test_requirements.py holds the pinned versions to the project's dependencies."""
    (source,) = (value.split()[0] for value in values(dockerfile, "COPY") if "/requirements.txt" in value)
    assert source == f"requirements/image{'-cuda' if dockerfile.suffix == '.cuda' else ''}.txt"
    runs = " ".join(values(dockerfile, "RUN"))
    assert "pip install --no-deps --require-hashes -r /requirements.txt" in runs
    assert "pip install --no-deps ." in runs


def test_no_development_tools_are_installed(dockerfile: Path) -> None:
    installed = set(pins("image-cuda" if dockerfile.suffix == ".cuda" else "image"))
    assert not {"pytest", "mypy", "ruff", "locust", "matplotlib"} & installed


def test_files_that_only_installation_needs_are_removed(dockerfile: Path) -> None:
    stage = final_stage(dockerfile)
    assert not any("pip install" in step.value for step in stage)
    installing = [
        step.value for step in instructions(dockerfile) if step.name == "RUN" and "apt-get" in step.value
    ]
    assert installing and all(
        "rm -rf /var/lib/apt/lists/*" in value and "--no-install-recommends" in value for value in installing
    )
    assert "PIP_NO_CACHE_DIR=1" in " ".join(values(dockerfile, "ENV"))


def test_the_image_has_the_commands_that_kuberay_calls(dockerfile: Path) -> None:
    (installing,) = (
        step.value for step in final_stage(dockerfile) if step.name == "RUN" and "apt-get" in step.value
    )
    assert {"bash", "wget", "curl", "tini"} <= set(installing.split())
    assert environment(dockerfile)["PATH"].startswith("/opt/safelight/bin:")
    (profile,) = (
        step.value for step in final_stage(dockerfile) if step.name == "RUN" and "profile.d" in step.value
    )
    assert "/opt/safelight/bin:$PATH" in profile


def test_ray_has_the_environment_of_safelight_serve(dockerfile: Path) -> None:
    inside = environment(dockerfile)
    assert inside["PYTHONUNBUFFERED"] == "1"
    assert inside["GOMP_SPINCOUNT"] == SPIN_COUNT
    assert {name: inside.get(name) for name in ENVIRONMENT.keys() - SERVE_ONLY} == {
        name: value for name, value in ENVIRONMENT.items() if name not in SERVE_ONLY
    }


def test_the_python_of_the_image_is_allowed(dockerfile: Path) -> None:
    (base,) = {value.split()[0] for value in values(dockerfile, "FROM")}
    python = re.search(r"python:(3\.\d+)-", base)
    version = python[1] if python else {"ubuntu24.04": "3.12"}[base.rsplit("-", 1)[1]]
    bounds = re.fullmatch(r">=(3\.\d+),<(3\.\d+)", PROJECT["requires-python"])
    assert bounds is not None
    low, high = bounds.groups()
    assert (
        tuple(map(int, low.split(".")))
        <= tuple(map(int, version.split(".")))
        < tuple(map(int, high.split(".")))
    )


def test_the_two_dockerfiles_differ_in_the_gpu_only(dockerfile: Path) -> None:
    """A change of one must be made in both."""
    (other,) = (file for file in DOCKERFILES if file != dockerfile)
    ours, theirs = ({(step.name, step.value) for step in instructions(file)} for file in (dockerfile, other))
    assert {name for name, _ in ours - theirs} <= {"FROM", "RUN", "ARG", "ENV", "COPY"}
    for name in ("TORCH_SPEC", "EXTRA_PACKAGES"):
        assert argument(dockerfile, name) == argument(other, name)
