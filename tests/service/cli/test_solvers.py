"""`safelight solvers`: the whole registry as text and as JSON, without torch."""

import json
import subprocess
import sys

import pytest

from safelight.pipeline.diffusion.solvers import ALIASES, SOLVERS
from safelight.service import cli


def test_json_lists_every_solver_and_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solvers", "--json"]) == 0
    entries = {entry.pop("name"): entry for entry in json.loads(capsys.readouterr().out)}
    assert list(entries) == list(SOLVERS)
    assert {alias: name for name, entry in entries.items() for alias in entry["aliases"]} == ALIASES
    assert entries["unipc_2"] == {
        "aliases": [],
        "order": 3,
        "convergence": "pathwise",
        "evaluations_per_step": 1,
        "deterministic": True,
        "served": True,
        "schedules": ["vp", "flow", "ve"],
        "source": SOLVERS["unipc_2"].source,
        "use": SOLVERS["unipc_2"].use,
    }
    langevin = entries["langevin"]
    assert (
        langevin["convergence"],
        langevin["deterministic"],
        langevin["served"],
        langevin["schedules"],
    ) == ("weak", False, False, ["ve"])


def test_text_lists_order_cost_use_and_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solvers"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == list(SOLVERS)
    assert "heun              order 2; 2 evaluations a step; deterministic; served; on vp, flow, ve" in out
    assert "langevin          no order; 100 evaluations a step; stochastic; offline; on ve" in out
    for name, solver in SOLVERS.items():
        assert f"{solver.use} [{solver.source}]" in out, name
    for alias in ALIASES:
        assert alias in out.split("aliases: ", 1)[1]
    assert max(map(len, out.splitlines())) <= 140


def test_it_starts_without_torch() -> None:
    code = (
        "import sys; from safelight.service import cli; cli.main(['solvers', '--json']);"
        "sys.exit(' '.join({'torch', 'ray', 'numpy'} & set(sys.modules)) or None)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert len(json.loads(process.stdout)) == len(SOLVERS)
