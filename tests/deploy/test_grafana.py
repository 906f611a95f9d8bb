"""The files of deploy/grafana, without Grafana. test_prometheus.py runs the dashboard's queries."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.deploy.manifests import DEPLOY

FOLDER = DEPLOY / "grafana"
DASHBOARD = json.loads((FOLDER / "dashboards" / "safelight.json").read_text(encoding="utf-8"))
PROVISIONING = FOLDER / "provisioning"
WIDTH = 24  # columns of Grafana's grid
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Every query of the dashboard, once."""
    return list(dict.fromkeys(target["expr"] for panel in PANELS for target in panel["targets"]))


def provisioned(kind: str) -> dict[str, Any]:
    (file,) = (PROVISIONING / kind).glob("*.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    grid = panel["gridPos"]
    columns = range(grid["x"], grid["x"] + grid["w"])
    return itertools.product(columns, range(grid["y"], grid["y"] + grid["h"]))


def test_panels_neither_overlap_nor_leave_the_grid():
    taken = [cell for panel in DASHBOARD["panels"] for cell in cells(panel)]
    assert len(taken) == len(set(taken))
    assert {x for x, _ in taken} == set(range(WIDTH))
    assert {y for _, y in taken} == set(range(max(y for _, y in taken) + 1)), "no gaps"


def test_ids_of_panels_and_queries_are_unique():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(refs) == len(set(refs))


def test_every_panel_uses_the_selected_source_and_has_a_unit():
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [source] * (
            1 + len(panel["targets"])
        )


def test_queries_use_no_variable_unknown_to_grafana():
    assert {name for query in queries() for name in re.findall(r"\$\{?(\w+)", query)} == {"__rate_interval"}


def test_it_works_without_the_recording_rules():
    assert not any("safelight:" in query for query in queries())


def test_legends_name_labels_that_their_queries_keep():
    for panel in PANELS:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b[^)]*\)", target["expr"]), panel["title"]


def test_the_source_is_the_prometheus_of_this_repository():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (source,) = provisioned("datasources")["datasources"]
    assert (source["type"], source["access"]) == ("prometheus", "proxy")
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_dashboards_are_read_from_files():
    (provider,) = provisioned("dashboards")["providers"]
    assert (provider["type"], provider["options"]) == ("file", {"path": "/var/lib/grafana/dashboards"})
    assert DASHBOARD["uid"] and "id" not in DASHBOARD, "a database assigns the id"
