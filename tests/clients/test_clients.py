"""Every client gets an image from the default service, without configuration of ours.

Programs are tested by what they send and read (`payloads/*.json`), libraries by running them.
`python -m tests.clients` prints the same as a table.
"""

from collections.abc import Callable, Iterator

import httpx2
import pytest

from tests.clients.exchange import Outcome, fetch_image, hold_all
from tests.clients.libraries import PROGRAMS, Action, Program, Result
from tests.clients.payloads import Conversation, read_conversations
from tests.clients.service import drawing_service

CONVERSATIONS = read_conversations()
PLAIN, INSTALLED = (
    [
        pytest.param(program, action, id=str(action))
        for program in PROGRAMS
        if program.is_installed == flag
        for action in program.actions
    ]
    for flag in (False, True)
)
Run = Callable[[Program], dict[tuple[str, str], Result]]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with drawing_service(default_steps="3") as url:  # fewer than the model's, to be quick
        yield url


@pytest.fixture(scope="module")
def outcomes(url: str) -> dict[str, Outcome]:
    return dict(zip(map(str, CONVERSATIONS), hold_all(url, CONVERSATIONS), strict=True))


@pytest.fixture(scope="module")
def run(url: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program, once."""
    results: dict[tuple[str, ...], dict[tuple[str, str], Result]] = {}

    def run_once(program: Program) -> dict[tuple[str, str], Result]:
        if program.command not in results:
            results[program.command] = program.run(url, tmp_path_factory.mktemp("client"))
        return results[program.command]

    return run_once


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=str)
def test_a_program_reads_what_it_gets(conversation: Conversation, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[str(conversation)]
    assert outcome.fault == ""
    assert outcome.statuses == (200,) * len(conversation.requests)


@pytest.mark.parametrize(("program", "action"), PLAIN)
def test_a_library(program: Program, action: Action, run: Run) -> None:
    check(program, action, run)


@pytest.mark.parametrize(("program", "action"), INSTALLED)
def test_an_installed_library(program: Program, action: Action, run: Run) -> None:
    """In the environment of `make clients`."""
    check(program, action, run)


def check(program: Program, action: Action, run: Run) -> None:
    result = run(program)[action.client, action.name]
    assert "failure" not in result, result["failure"]
    with httpx2.Client() as client:
        action.check(result, lambda link: fetch_image(client, link))


def test_every_result_of_a_library_is_judged(run: Run) -> None:
    for program in PROGRAMS:
        if not program.is_installed:
            assert list(run(program)) == [(action.client, action.name) for action in program.actions]
