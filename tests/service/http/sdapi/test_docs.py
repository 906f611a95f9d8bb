"""The table of samplers in docs/sdapi.md is the code's."""

import re
from pathlib import Path

from safelight.service.http.sdapi.samplers import SAMPLERS

PAGE = (Path(__file__).resolve().parents[4] / "docs/sdapi.md").read_text(encoding="utf-8")


def test_the_table_of_samplers_is_the_codes() -> None:
    table = PAGE.split("## Samplers")[1]
    assert dict(re.findall(r"^\| ([A-Z][^|]*?) \| `(\w+)` \|", table, re.MULTILINE)) == SAMPLERS
