"""The figures in `docs/data`: a folder for each machine, a file for each run of a benchmark."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data"
# Titles of the runs that a command wrote; entries made by hand bring their own.
TITLES = {
    "bench": "The engine beside diffusers",
    "update": "The update of a tick",
    "forecasts": "Forecasts of throughput and latency",
    "simulator": "The simulator beside the live service",
    "control-plane": "Unit costs of the control plane",
    "http": "Over HTTP",
    "streaming": "Previews",
    "waiting-threads": "Waiting threads",
}


@dataclass(frozen=True)
class Run:
    """One file of figures.

    Attributes:
        folder: name of its folder, which is the machine.
        name: the file's name without suffix.
        record: what it holds; `pipeline/benchmark/record.py` has the form, to which entries made by hand
            add `title`, `about`, `notes`, and `entered_in`: the commit that entered them here.
    """

    folder: str
    name: str
    record: Mapping[str, Any]

    @property
    def title(self) -> str:
        return str(self.record.get("title") or TITLES[self.name])

    @property
    def machine(self) -> Mapping[str, Any]:
        machine: Mapping[str, Any] = self.record["machine"]
        return machine

    @property
    def figures(self) -> Mapping[str, Any]:
        figures: Mapping[str, Any] = self.record["figures"]
        return figures

    @property
    def kind(self) -> str:
        """As `Machine.kind`."""
        return str(self.machine["accelerator"] or (self.machine["instruction_sets"] or ["other"])[-1])

    @property
    def provenance(self) -> str:
        """Commit, date, command and best matrix product, in a sentence."""
        commit, entered = self.record["commit"], self.record.get("entered_in")
        parts = [f"commit {commit}" if commit else "commit not recorded", self.record["date"]]
        if entered and not commit:
            parts[0] += f" (entered in {entered})"
        peaks = [f"{peak:,.0f} GFLOPS in {name}" for name, peak in self.machine["gemm_gflops"].items()]
        parts += [f"best matrix product {' and '.join(peaks)}"] if peaks else []
        command = self.record["command"]
        return f"*{', '.join(parts)}{f': `{command}`' if command else ''}*"


def load_runs(data: Path = DATA) -> list[Run]:
    """Every run, by folder and name."""
    return [
        Run(path.parent.name, path.stem, json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(data.glob("*/*.json"))
    ]


def find_run(runs: Sequence[Run], folder: str, name: str) -> Run:
    """The run of this folder and name."""
    (run,) = (run for run in runs if (run.folder, run.name) == (folder, name))
    return run
