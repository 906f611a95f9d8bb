"""deploy/prometheus: checked by promtool, and by a Prometheus that scrapes a running service.

The latter also evaluates every query of Grafana's dashboard.
"""

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from safelight.service.errors import ServiceError
from safelight.service.telemetry.metric_tables import (
    ATTRIBUTED_METRIC,
    GATEWAY_METRICS,
    LEDGER_METRICS,
    REQUEST_HISTOGRAMS,
    REQUEST_METRICS,
    STAGE_METRICS,
    TICK_METRICS,
    UNATTRIBUTED_METRIC,
    UNATTRIBUTED_REASONS,
)
from safelight.service.usage.records import RequestOutcome
from tests.deploy import prometheus_server
from tests.deploy.manifests import DEPLOY
from tests.deploy.prometheus_server import Prometheus
from tests.deploy.test_grafana import queries
from tests.live import LiveService

FOLDER = DEPLOY / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDS = {rule["record"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
EXPRESSIONS = [*(rule["expr"] for rule in RULES), *queries()]
KINDS = {
    **{
        metric.name: metric.kind
        for metric in (*GATEWAY_METRICS, *LEDGER_METRICS, *REQUEST_METRICS, *STAGE_METRICS)
    },
    **{metric.name: "histogram" for metric in (*REQUEST_HISTOGRAMS, *TICK_METRICS)},
    ATTRIBUTED_METRIC.name: ATTRIBUTED_METRIC.kind,
    UNATTRIBUTED_METRIC.name: "counter",  # a gauge that grows like a counter, so it is read by its rate
}
PATIENCE = 60.0  # seconds; the machine may be busy
COUNTS = {
    "images": "sum(safelight_images_total)",
    "done": 'sum(safelight_requests_total{outcome="done"})',
    "refused": 'sum(safelight_requests_total{outcome="refused"})',
}
IMAGES = 2  # in one request
ROUNDS = 2  # a series that starts with its first request has a rate only after the second


@pytest.fixture(scope="module")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *args: subprocess.run(["promtool", *args], cwd=FOLDER, capture_output=True, text=True)


@pytest.mark.parametrize(
    "args",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
)
def test_promtool_succeeds(
    promtool: Callable[..., subprocess.CompletedProcess[str]], args: tuple[str, ...]
) -> None:
    done = promtool(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_the_rules_tests_detect_an_alert_that_never_fires(
    promtool: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The rules' tests, run on rules whose conditions are never true."""
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        rule["expr"] = f"({rule['expr']}) and on () vector(0) > 0"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", str(tmp_path / "rules_test.yml"))
    assert done.returncode != 0
    assert set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) == ALERTS


def test_every_alert_is_tested_firing_and_silent_and_every_recording_once() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", ())]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == ALERTS
    expressions = " ".join(case["expr"] for test in tests for case in test.get("promql_expr_test", ()))
    assert {record for record in RECORDS if record not in expressions} == set()


def test_every_queried_metric_exists() -> None:
    queried = {name for expression in EXPRESSIONS for name in re.findall(r"\bsafelight_\w+", expression)}
    series = {name for name, kind in KINDS.items() if kind != "histogram"}
    series |= {
        name + end
        for name, kind in KINDS.items()
        if kind == "histogram"
        for end in ("_bucket", "_sum", "_count")
    }
    assert queried and queried - series == set()


def test_every_queried_recording_exists() -> None:
    assert {
        name for expression in EXPRESSIONS for name in re.findall(r"\bsafelight:[\w:]+", expression)
    } <= RECORDS


def test_queried_label_values_exist() -> None:
    label_values: dict[str, set[str]] = {
        "job": {"safelight"},
        "stage": {"encode", "denoise", "decode"},
        "reason": set(UNATTRIBUTED_REASONS),
        "outcome": set(RequestOutcome),
        "code": {error.code for error in _with_subclasses(ServiceError)},
    }
    for expression in EXPRESSIONS:
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', expression):
            assert set(values.split("|")) <= label_values[label], expression


def test_each_metric_is_queried_according_to_its_kind() -> None:
    """Counters and histograms by their rate, gauges directly."""
    for expression in EXPRESSIONS:
        for name, kind in KINDS.items():
            grows = kind in ("counter", "histogram")
            for match in re.finditer(
                rf"(\w*)\(?{name}(?:_bucket|_sum|_count)?(?:{{[^}}]*}})?(\[)?", expression
            ):
                assert (match[1] in ("rate", "deriv")) == grows, f"{name} in {expression}"
                assert match[2] == "[" or not grows, f"{name} in {expression}"


def test_the_rules_use_the_scraped_job() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    assert [job["job_name"] for job in config["scrape_configs"]] == ["safelight"]
    assert [str(FOLDER / file) for file in config["rule_files"]] == [str(FOLDER / "rules.yml")]


@dataclass(frozen=True)
class ScrapedService:
    """A service that has generated images, and the Prometheus that scraped it."""

    prometheus: Prometheus
    images: int  # received
    before: dict[str, float]  # `COUNTS` before the requests, which other tests may have raised

    def increase(self, count: str) -> float:
        """By how much one of `COUNTS` has grown."""
        return (self.prometheus.value(COUNTS[count]) or 0.0) - self.before[count]


@pytest.fixture(scope="module")
def scraped(live_service: LiveService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScrapedService]:
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        prometheus_server.running(
            with_short_intervals(FOLDER / "prometheus.yml", live_service.port, folder), folder
        ) as prometheus,
        httpx2.Client(base_url=live_service.url, timeout=PATIENCE) as http,
    ):
        wait_until(lambda: prometheus.value(COUNTS["images"]) is not None)
        before = {name: prometheus.value(query) or 0.0 for name, query in COUNTS.items()}
        images = 0
        for _ in range(ROUNDS):
            expected = before["images"] + images
            wait_until(partial(has_value, prometheus, COUNTS["images"], expected))
            for seed in range(3):
                images += draw(http, seed)
            assert http.post("/v1/images/generations", json={"prompt": ""}).status_code == 400
        wait_until(lambda: prometheus.value(COUNTS["images"]) == before["images"] + images)
        yield ScrapedService(prometheus, images, before)


def has_value(prometheus: prometheus_server.Prometheus, query: str, expected: float) -> bool:
    return prometheus.value(query) == expected


def with_short_intervals(config: Path, port: int, folder: Path) -> Path:
    """A copy of `config` in `folder`, for the gateway at `port` and with intervals of a second."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["global"] = dict.fromkeys(content["global"], "1s")
    content["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    shutil.copy(config.with_name("rules.yml"), folder)
    (folder / config.name).write_text(yaml.safe_dump(content))
    return folder / config.name


def draw(http: httpx2.Client, seed: int) -> int:
    """Request `IMAGES` images; how many came."""
    answer = http.post(
        "/v1/images/generations",
        json={"prompt": "a red apple", "seed": seed, "n": IMAGES, "num_inference_steps": 4},
    )
    assert answer.status_code == 200, answer.text
    return sum(base64.b64decode(image["b64_json"]).startswith(b"\x89PNG") for image in answer.json()["data"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.25)


def test_images_and_requests_are_counted(scraped: ScrapedService) -> None:
    assert scraped.images == IMAGES * 3 * ROUNDS
    assert scraped.increase("images") == scraped.images
    assert scraped.increase("done") == 3 * ROUNDS
    assert scraped.increase("refused") == ROUNDS


def test_every_recording_has_values(scraped: ScrapedService) -> None:
    wait_until(lambda: all(rule["health"] == "ok" for rule in scraped.prometheus.rules()))
    wait_until(lambda: not {record for record in RECORDS if not has_values(scraped.prometheus, record)})
    rate = scraped.prometheus.value("safelight:images_per_hour:rate5m")
    assert rate is not None and rate > 0
    assert {
        sample["metric"]["stage"] for sample in scraped.prometheus.ask("safelight:stage_replicas:max")
    } == {
        "encode",
        "denoise",
        "decode",
    }


@pytest.mark.parametrize("query", queries())
def test_every_query_of_the_dashboard_has_values(scraped: ScrapedService, query: str) -> None:
    wait_until(lambda: has_values(scraped.prometheus, query.replace("$__rate_interval", "1m")))


def has_values(prometheus: Prometheus, query: str) -> bool:
    """Whether the query returns numbers."""
    values = [sample["value"][1] for sample in prometheus.ask(query)]
    return bool(values) and "NaN" not in values


def test_no_alert_fires_on_a_healthy_service(scraped: ScrapedService) -> None:
    alerts = [rule for rule in scraped.prometheus.rules() if rule["type"] == "alerting"]
    assert {rule["name"] for rule in alerts} == ALERTS
    assert {rule["name"] for rule in alerts if rule["state"] == "firing"} == set()


def test_no_critical_alert_is_pending(scraped: ScrapedService) -> None:
    """Most alerts are pending for longer than this test takes. On a busy machine single scrapes may fail."""
    wait_until(
        lambda: all(rule["state"] == "inactive" for rule in scraped.prometheus.rules() if is_critical(rule))
    )


def is_critical(rule: dict[str, Any]) -> bool:
    return bool(rule["type"] == "alerting" and rule["labels"]["severity"] == "critical")


def _with_subclasses(error: type[Any]) -> Iterator[type[Any]]:
    yield error
    for child in error.__subclasses__():
        yield from _with_subclasses(child)
