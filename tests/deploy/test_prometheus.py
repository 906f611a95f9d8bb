"""deploy/prometheus by Prometheus' own tools, and on a service that draws: every rule, and every query of Grafana's dashboard."""

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from safelight.service.errors import ServiceError
from safelight.service.telemetry.metrics import OF_REQUESTS, OF_STAGES, TICKS, UNATTRIBUTED
from safelight.service.usage.records import RequestOutcome
from tests.deploy import prometheus_server
from tests.deploy.manifests import DEPLOY
from tests.deploy.prometheus_server import Prometheus
from tests.deploy.test_grafana import queries
from tests.live import LiveService, serving

FOLDER = DEPLOY / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDS = {rule["record"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
EXPRESSIONS = [*(rule["expr"] for rule in RULES), *queries()]
UNATTRIBUTED_SECONDS = "safelight_stage_unattributed_seconds"  # service/telemetry/metrics.py has it in no table
KINDS = (
    {name: kind for name, (kind, _, _) in OF_REQUESTS.items()}
    | {metric.name: metric.kind for metric in OF_STAGES}
    | dict.fromkeys(TICKS, "histogram")
    | {UNATTRIBUTED_SECONDS: "counter"}
)
PATIENCE = 60.0  # seconds; the machine may be doing something else
IMAGES = 2  # of one request
ROUNDS = 2  # a rate sees what grows: what comes into being with its first request grows with the second


@pytest.fixture(scope="module")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    prometheus_server.install()
    return lambda *args: subprocess.run(["promtool", *args], cwd=FOLDER, capture_output=True, text=True)


@pytest.mark.parametrize(
    "args",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
)
def test_promtool_agrees(promtool, args):
    done = promtool(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_an_alert_that_never_fires_is_found_out(promtool, tmp_path):
    """The rules' own tests, with every bound out of reach."""
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        rule["expr"] = f"({rule['expr']}) and on () vector(0) > 0"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", str(tmp_path / "rules_test.yml"))
    assert done.returncode != 0
    assert set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) == ALERTS


def test_every_alert_is_tried_both_ways_and_every_recording_once():
    told = yaml.safe_load((FOLDER / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in told for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == ALERTS
    asked = " ".join(case["expr"] for test in told for case in test.get("promql_expr_test", ()))
    assert {record for record in RECORDS if record not in asked} == set()


def test_every_metric_that_is_asked_for_exists():
    asked = {name for expression in EXPRESSIONS for name in re.findall(r"\bsafelight_\w+", expression)}
    series = {name for name, kind in KINDS.items() if kind != "histogram"}
    series |= {
        name + end
        for name, kind in KINDS.items()
        if kind == "histogram"
        for end in ("_bucket", "_sum", "_count")
    }
    assert asked and asked - series == set()


def test_every_recording_that_is_asked_for_exists():
    assert {
        name for expression in EXPRESSIONS for name in re.findall(r"\bsafelight:[\w:]+", expression)
    } <= RECORDS


def test_what_is_looked_for_in_labels_is_said():
    said = {
        "job": {"safelight"},
        "stage": {"encode", "denoise", "decode"},
        "reason": set(UNATTRIBUTED),
        "outcome": set(RequestOutcome),
        "code": {kind.code for kind in _below(ServiceError)},
    }
    for expression in EXPRESSIONS:
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', expression):
            assert set(values.split("|")) <= said[label], expression


def test_each_kind_is_read_as_what_it_is():
    """Counters and histograms by their growth, gauges as they are."""
    for expression in EXPRESSIONS:
        for name, kind in KINDS.items():
            grows = kind in ("counter", "histogram")
            for found in re.finditer(
                rf"(\w*)\(?{name}(?:_bucket|_sum|_count)?(?:{{[^}}]*}})?(\[)?", expression
            ):
                assert (found[1] in ("rate", "deriv")) == grows, f"{name} in {expression}"
                assert found[2] == "[" or not grows, f"{name} in {expression}"


def test_the_rules_ask_for_the_job_that_is_scraped():
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    assert [job["job_name"] for job in config["scrape_configs"]] == ["safelight"]
    assert [str(FOLDER / file) for file in config["rule_files"]] == [str(FOLDER / "rules.yml")]


@dataclass(frozen=True)
class Watched:
    """A service that has drawn, and the Prometheus that watched it."""

    service: LiveService
    prometheus: Prometheus
    images: int  # that came back


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Watched]:
    prometheus_server.install()
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        serving(folder, "--model", "tiny") as service,
        prometheus_server.running(
            quick(FOLDER / "prometheus.yml", service.port, folder), folder
        ) as prometheus,
        httpx.Client(base_url=service.url, timeout=PATIENCE) as http,
    ):
        images = 0
        for _ in range(ROUNDS):
            wait_until(lambda drawn=images: prometheus.value("sum(safelight_images_total)") == drawn)
            for seed in range(3):
                images += draw(http, seed)
            assert http.post("/v1/images/generations", json={"prompt": ""}).status_code == 400
        wait_until(lambda: prometheus.value("sum(safelight_images_total)") == images)
        yield Watched(service, prometheus, images)


def quick(config: Path, port: int, folder: Path) -> Path:
    """The same in `folder`, with one gateway of ours and intervals of a second."""
    told = yaml.safe_load(config.read_text(encoding="utf-8"))
    told["global"] = dict.fromkeys(told["global"], "1s")
    told["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    shutil.copy(config.with_name("rules.yml"), folder)
    (folder / config.name).write_text(yaml.safe_dump(told))
    return folder / config.name


def draw(http: httpx.Client, seed: int) -> int:
    """How many images came."""
    answer = http.post(
        "/v1/images/generations",
        json={"prompt": "a red apple", "seed": seed, "n": IMAGES, "num_inference_steps": 4},
    )
    assert answer.status_code == 200, answer.text
    return sum(base64.b64decode(image["b64_json"]).startswith(b"\x89PNG") for image in answer.json()["data"])


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.25)


def test_what_was_drawn_is_counted(watched):
    assert watched.images == IMAGES * 3 * ROUNDS
    assert watched.prometheus.value("sum(safelight_images_total)") == watched.images
    assert watched.prometheus.value('sum(safelight_requests_total{outcome="done"})') == 3 * ROUNDS
    assert watched.prometheus.value('sum(safelight_requests_total{outcome="refused"})') == ROUNDS


def test_every_recording_has_something_to_say(watched):
    wait_until(lambda: all(rule["health"] == "ok" for rule in watched.prometheus.rules()))
    wait_until(lambda: not {record for record in RECORDS if not says(watched.prometheus, record)})
    assert watched.prometheus.value("safelight:images_per_hour:rate5m") > 0
    assert {
        sample["metric"]["stage"] for sample in watched.prometheus.ask("safelight:stage_replicas:max")
    } == {
        "encode",
        "denoise",
        "decode",
    }


@pytest.mark.parametrize("query", queries())
def test_every_query_of_the_dashboard_has_something_to_say(watched, query):
    wait_until(lambda: says(watched.prometheus, query.replace("$__rate_interval", "1m")))


def says(prometheus: Prometheus, query: str) -> bool:
    """Whether it answers with numbers."""
    values = [sample["value"][1] for sample in prometheus.ask(query)]
    return bool(values) and "NaN" not in values


def test_no_alert_fires_on_a_service_that_draws(watched):
    alerts = [rule for rule in watched.prometheus.rules() if rule["type"] == "alerting"]
    assert {rule["name"] for rule in alerts} == ALERTS
    assert {rule["name"] for rule in alerts if rule["state"] == "firing"} == set()


def test_no_grave_alert_is_even_on_its_way(watched):
    """Most wait longer than this test before they fire. A single scrape may fail on a machine that does something else."""
    wait_until(
        lambda: all(rule["state"] == "inactive" for rule in watched.prometheus.rules() if is_grave(rule))
    )


def is_grave(rule: dict[str, Any]) -> bool:
    return rule["type"] == "alerting" and rule["labels"]["severity"] == "critical"


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _below(child)
