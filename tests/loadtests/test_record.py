"""A load test's `record.json` has the form of docs/data, and the documents can show it."""

import json
from pathlib import Path

from docs.figures.data import Run
from docs.figures.performance import run_section
from loadtests.report import write_record
from loadtests.results import Phase, RequestResult
from loadtests.verdicts import Verdict

BENCH = {
    "machine": {
        "processor": "a processor", "cores": 2, "instruction_sets": ["AVX2"], "accelerator": None,
        "gemm_gflops": {"float32": 100.0},
    },
    "commit": "abcdef1",
    "date": "2026-11-30",
    "command": "safelight bench --engine-only",
    "figures": {"model": "tiny", "mixed": {"ours": {"images_per_hour": 5000.0, "p50_s": 1.0, "p95_s": 2.0}}},
}  # fmt: skip


def test_the_record_has_the_machine_of_the_engines_run_and_is_shown(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    verdicts = [
        Verdict("throughput over HTTP", "at least 85% of the engine alone", "46%", is_met=False),
        Verdict("throughput, saturated", "at least 1000 images/h", "900 images/h", is_met=None),
    ]
    phase = Phase("steady", 100.0, (RequestResult(0.0, 0.0, 2.0, 200, None, 1, 1.5, 20),))
    write_record(tmp_path, "python -m loadtests --seconds 60", [phase], verdicts)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record.keys() == {"machine", "commit", "date", "command", "figures"}
    assert (record["machine"], record["commit"]) == (BENCH["machine"], "abcdef1")
    assert record["figures"]["engine_images_per_hour"] == 5000.0
    assert [entry["name"] for entry in record["figures"]["phases"]] == ["steady"]
    section = run_section(Run("avx2", "http", record))
    assert "| throughput over HTTP | at least 85% of the engine alone | 46% | missed |" in section
    assert "| throughput, saturated | at least 1000 images/h | 900 images/h | not reachable here |" in section
    assert "commit abcdef1, 2026-11-30, best matrix product 100 GFLOPS in float32" in section
    assert "`python -m loadtests --seconds 60`" in section
