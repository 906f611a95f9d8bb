"""Runs schemathesis, with all of its checks, against a gateway over the stages of the model `tiny`.

Requests are made from the OpenAPI schema: valid ones, which must not be refused; invalid ones, which must be;
and undocumented methods. Every answer must be one that the schema declares. All happens in this process.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import schemathesis
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image
from pydantic import SecretStr
from schemathesis import Case, HookContext
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.python.asgi import shutdown_lifespans

from safelight.pipeline.catalog.served_models import find_model
from safelight.service.http.edits.schema import DATA_FORMAT
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from safelight.service.settings import Settings
from tests.service.http.uploads import data_url, mask, save
from tests.service.inprocess_backend import InProcessBackend

EDITS, FILES, FORM = "/v1/images/edits", "/v1/files", "multipart/form-data"
KEY = "fuzz"
# A request for more images than are allowed at a time is answered with 429, which is documented, too.
SETTINGS = Settings(model="tiny", peak_tflops=1.0, admin_key=SecretStr(KEY), max_pictures=4)
NUM_STEPS = 4  # of requests that do not say
SEED = 20  # the same requests in every run
EXAMPLES = 220  # random requests to each route


@dataclass(frozen=True)
class Finding:
    """An answer that a check does not take."""

    check: str
    operation: str
    message: str
    request: str  # as a curl command
    answer: str


@dataclass
class Report:
    """What a run sent and found."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)  # by operation and status
    cases: Counter[str] = field(default_factory=Counter)  # by phase and whether they were valid
    findings: list[Finding] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # of schemathesis itself
    seconds: float = 0.0

    @property
    def num_cases(self) -> int:
        return self.answers.total()

    @property
    def statuses(self) -> Counter[int]:
        statuses: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            statuses[status] += count
        return statuses


def fuzz(
    max_examples: int = EXAMPLES, path: str | None = None, seed: int = SEED, is_short: bool = False
) -> Report:
    """Send the requests that schemathesis makes of the schema.

    Args:
        max_examples: Random requests to each route.
        path: Only routes of this path.
        seed: Of the random requests.
        is_short: Leave out the requests that cover every part of the schema.
    """
    _register_files()
    _register_values()
    report, started = Report(), time.perf_counter()
    with _gateway() as app:
        schema = schemathesis.openapi.from_asgi(
            "/openapi.json", app, config=_config(max_examples, seed, is_short)
        )
        paths = app.openapi()["paths"]
        forms = {
            path: Draft202012Validator(paths[path]["post"]["requestBody"]["content"][FORM]["schema"])
            for path in (EDITS, FILES)
        }
        included = schema if path is None else schema.include(path=path)
        for event in from_schema(included).execute():
            if isinstance(event, events.ScenarioFinished):
                _record(report, event.recorder, forms)
            elif isinstance(event, events.NonFatalError):
                report.errors.append(f"{event.label}: {event.info.format()}")
            elif isinstance(event, events.FatalError):
                raise event.exception
    report.seconds = time.perf_counter() - started
    return report


def _config(max_examples: int, seed: int, is_short: bool) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "workers": 1,
            "continue-on-failure": True,
            "auth": {"openapi": {"admin_key": {"bearer": KEY}}},
            # Sequences of requests are for services with resources that are made and deleted.
            "phases": {"coverage": {"enabled": not is_short}, "stateful": {"enabled": False}},
            # Texts of the program in place of random ones: no file is among them, where one is asked for.
            "analysis": {"constants": {"enabled": False}},
            "generation": {
                "max-examples": max_examples, "database": "none", "no-shrink": True, "deterministic": True,
            },
        }
    )  # fmt: skip


def _register_values() -> None:
    """Let valid requests have values that can be served, where the schema cannot say so.

    In one form that covers the schema, schemathesis fills whatever is required beside files with empty texts,
    whether these are valid or not. How short a deadline can be depends on the machine. Uploads and `images`
    are counted together.
    """

    @schemathesis.hook
    def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
        is_valid = case.meta is not None and case.meta.generation.mode.is_positive
        if not is_valid or not isinstance(case.body, dict):
            return
        body = {name: value for name, value in case.body.items() if name != "deadline_ms"}  # a copy: shared
        if body.get("prompt") == "":
            body["prompt"] = "a red apple"
        if isinstance(images := body.get("images"), list):
            body["images"] = images[:1]
        case.body = body


def _register_files() -> None:
    """Let all files be images of one size, each of which may also be the mask of another."""
    image = mask()
    for format, kind in (("PNG", "image/png"), ("WEBP", "image/webp")):
        schemathesis.openapi.media_type(kind, st.just(save(image, format)))
    schemathesis.openapi.media_type(
        "image/jpeg", st.just(save(Image.new("RGB", image.size, "white"), "JPEG"))
    )
    schemathesis.openapi.format(DATA_FORMAT, st.just(data_url(save(image, "PNG"))))
    schemathesis.openapi.format("binary", st.just(save(image, "PNG")))


@contextmanager
def _gateway() -> Iterator[Any]:
    model = replace(find_model("tiny"), num_steps=NUM_STEPS)
    pipeline = InProcessPipeline(model, SETTINGS)
    pipeline.wait()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # a line for every request
    try:
        yield build_gateway(InProcessBackend(pipeline), model, SETTINGS)
    finally:
        logging.disable(level)
        shutdown_lifespans()
        pipeline.close()


def _is_valid_form(check: str, case: Case[Any], forms: Mapping[str, Draft202012Validator]) -> bool:
    """Whether a form is valid that was to be refused.

    schemathesis takes every form with a file for invalid where it looks for mutations that are, because bytes
    are no text of JSON.
    """
    if check != "negative_data_rejection" or case.media_type != FORM or not isinstance(case.body, dict):
        return False
    fields = {name: "" if isinstance(value, bytes) else value for name, value in case.body.items()}
    return case.path in forms and bool(forms[case.path].is_valid(fields))


def _record(report: Report, recorder: ScenarioRecorder, forms: Mapping[str, Draft202012Validator]) -> None:
    """Add what one scenario sent and found; `forms` are the schemas of forms, by path."""
    for case_id, interaction in recorder.interactions.items():
        case = recorder.cases[case_id].value
        status = 0 if interaction.response is None else interaction.response.status_code
        report.answers[f"{case.method} {case.path}", status] += 1
        if case.meta is not None:
            mode = case.meta.generation.mode.name.lower()
            report.cases[f"{case.meta.phase.name.value}, {mode}"] += 1
    for case_id, checks in recorder.checks.items():
        case = recorder.cases[case_id].value
        response = recorder.interactions[case_id].response
        for check in checks:
            if check.failure_info is not None and not _is_valid_form(check.name, case, forms):
                report.findings.append(
                    Finding(
                        check.name,
                        f"{case.method} {case.path}",
                        str(check.failure_info.failure),
                        check.failure_info.code_sample,
                        "none" if response is None else f"{response.status_code} {response.text[:500]}",
                    )
                )
