"""`safelight solvers`: the registry as it is, for people and for programs, without torch."""

import json
import subprocess
import sys

from safelight.pipeline.diffusion.solvers import ALIASES, SOLVERS
from safelight.service import cli


def test_every_solver_and_alias_is_told_to_programs(capsys):
    assert cli.main(["solvers", "--json"]) == 0
    told = {entry.pop("name"): entry for entry in json.loads(capsys.readouterr().out)}
    assert list(told) == list(SOLVERS)
    assert {alias: name for name, entry in told.items() for alias in entry["aliases"]} == ALIASES
    assert told["unipc_2"] == {
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
    langevin = told["langevin"]
    assert (
        langevin["convergence"],
        langevin["deterministic"],
        langevin["served"],
        langevin["schedules"],
    ) == ("weak", False, False, ["ve"])


def test_people_read_what_each_is_for(capsys):
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


def test_it_starts_without_torch():
    code = (
        "import sys; from safelight.service import cli; cli.main(['solvers', '--json']);"
        "sys.exit(' '.join({'torch', 'ray', 'numpy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)) == len(SOLVERS)
