"""The steps of `make gpu`: commands with a time limit each, whose results are kept whatever comes later."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TAIL = 2000  # characters of each output in the report


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its files in the report's folder.
        shows: what it shows, in words.
        command: its words; `{python}` stands for the interpreter, `{out}` for the report's folder.
        seconds: after which it is ended.
    """

    name: str
    shows: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class StepResult:
    """How a step ended: with a status, or None if its time was up."""

    name: str
    shows: str
    command: str
    status: int | None
    seconds: float
    stdout: str
    stderr: str

    @property
    def verdict(self) -> str:
        if self.status is None:
            return "out of time"
        return "passed" if self.status == 0 else f"failed with status {self.status}"


def run_steps(
    steps: Sequence[Step], out: Path, words: Mapping[str, str], say: Callable[[str], None]
) -> list[StepResult]:
    """Run all steps, one after another; after each, its outputs and the report of all so far are in `out`.

    Args:
        steps: In order of their worth.
        out: The report's folder.
        words: What stands for the names in braces in the commands.
        say: Shows one line of progress.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: list[StepResult] = []
    for step in steps:
        say(f"{step.name}: {step.shows}, at most {step.seconds:.0f} s")
        result = _run(step, out, words)
        results.append(result)
        say(f"{step.name}: {result.verdict} after {result.seconds:.0f} s")
        _write_report(results, len(steps), out)
    return results


def _run(step: Step, out: Path, words: Mapping[str, str]) -> StepResult:
    command = [word.format_map(words) for word in step.command]
    files = [out / f"{step.name}.{suffix}" for suffix in ("out", "err")]
    started = time.monotonic()
    with files[0].open("wb") as stdout, files[1].open("wb") as stderr:
        # A session of its own, so that what the command starts ends with it.
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            status: int | None = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    texts = [file.read_text(errors="replace") for file in files]
    seconds = time.monotonic() - started
    return StepResult(step.name, step.shows, " ".join(command), status, seconds, texts[0], texts[1])


def _write_report(results: Sequence[StepResult], num_steps: int, out: Path) -> None:
    (out / "report.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    rows = [f"| {r.name} | {r.shows} | {r.verdict} | {r.seconds:.0f} |" for r in results]
    sections = [
        f"## {r.name}\n\n`{r.command}`\n\n```\n{(r.stdout[-TAIL:] + r.stderr[-TAIL:]).strip()}\n```"
        for r in results
    ]
    head = (
        f"# GPU report\n\n{len(results)} of {num_steps} steps.\n",
        "| step | shows | result | seconds |",
        "|---|---|---|---:|",
    )
    (out / "report.md").write_text("\n\n".join(["\n".join([*head, *rows]), *sections]) + "\n")
