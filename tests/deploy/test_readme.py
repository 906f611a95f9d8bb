"""deploy/README.md names the files of `deploy`, and its statements about them are right."""

import re

from safelight.service.local import ENVIRONMENT
from safelight.service.runtime.environment import SPIN_COUNT
from safelight.service.settings import Settings
from tests.deploy.manifests import DEPLOY, DOCKERFILES, PROJECT, instructions

README = (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert (
        links
        and {link for link in links if not link.startswith("http") and not (DEPLOY / link).exists()} == set()
    )


def test_every_file_is_named() -> None:
    ours = {
        file.relative_to(DEPLOY).as_posix()
        for folder in ("docker", "serve", "kuberay")
        for file in (DEPLOY / folder).iterdir()
    }
    assert {file for file in ours if file not in README} == set()


def test_it_lists_the_build_arguments_of_the_dockerfiles() -> None:
    arguments = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert arguments == {
        instruction.value.split("=")[0]
        for dockerfile in DOCKERFILES
        for instruction in instructions(dockerfile)
        if instruction.name == "ARG"
    }


def test_it_names_the_image_of_this_version() -> None:
    assert set(re.findall(r"safelight:(\d+\.\d+\.\d+)", README)) == {PROJECT["version"]}


def test_the_settings_that_it_names_exist() -> None:
    named = {name.lower() for name in re.findall(r"SAFELIGHT_([A-Z_]+)", README)}
    assert named and named <= Settings.model_fields.keys()
    mentioned = set(re.findall(r"`(\w+_(?:seconds|replicas|images|bytes))[`:]", README))
    assert mentioned and mentioned <= Settings.model_fields.keys()


def test_it_asks_for_the_environment_of_safelight_serve() -> None:
    assert f"`RAY_worker_niceness={ENVIRONMENT['RAY_worker_niceness']}`" in README
    assert f"`GOMP_SPINCOUNT={SPIN_COUNT}`" in README
