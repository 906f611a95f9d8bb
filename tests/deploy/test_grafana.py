"""deploy/grafana is consistent; tested without Grafana. test_prometheus.py runs the queries."""

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
    parsed: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return parsed


def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    at = panel["gridPos"]
    return itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))


def test_panels_fill_the_grid_without_overlap() -> None:
    used = [cell for panel in DASHBOARD["panels"] for cell in cells(panel)]
    assert len(used) == len(set(used))
    assert {x for x, _ in used} == set(range(WIDTH))
    assert {y for _, y in used} == set(range(max(y for _, y in used) + 1)), "no gaps"


def test_ids_of_panels_and_queries_are_unique() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(refs) == len(set(refs))


def test_every_panel_uses_the_selected_source_and_has_a_unit() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    selected = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [selected] * (
            1 + len(panel["targets"])
        )


def test_queries_use_no_unknown_variable() -> None:
    assert {name for query in queries() for name in re.findall(r"\$\{?(\w+)", query)} == {"__rate_interval"}


def test_queries_do_not_need_the_recording_rules() -> None:
    assert not any("safelight:" in query for query in queries())


def test_legends_use_labels_of_their_queries() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b[^)]*\)", target["expr"]), panel["title"]


def test_the_source_matches_the_prometheus_configuration() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (source,) = provisioned("datasources")["datasources"]
    assert (source["type"], source["access"]) == ("prometheus", "proxy")
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_dashboards_are_provisioned_from_files() -> None:
    (provider,) = provisioned("dashboards")["providers"]
    assert (provider["type"], provider["options"]) == ("file", {"path": "/var/lib/grafana/dashboards"})
    assert DASHBOARD["uid"] and "id" not in DASHBOARD, "an id is assigned by a database"
