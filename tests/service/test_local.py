"""Starting a local service, as far as it can be tested without Ray."""

import pytest

from safelight.service import local
from safelight.service.settings import Settings

REPORT = """The deployment failed to start 2 times in a row. See controller logs for details. Error:
ray::ServeReplica:safelight:Denoiser.initialize_and_get_metadata() (pid=3253, ip=192.0.2.2)
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/srv/safelight/models/checkpoints/tensors.py", line 37, in fill
    raise CheckpointError(f"{folder}: tensor {first} is {problem}{more}")
safelight.models.checkpoints.json_files.CheckpointError: /x/transformer: tensor proj_out.weight is missing"""


@pytest.mark.parametrize(
    ("reports", "cause"),
    [
        (("", REPORT, "", "Deploying failed."), "/x/transformer: tensor proj_out.weight is missing"),
        (("", "Deploying failed.\nThe cluster is full."), "The cluster is full."),
    ],
)
def test_the_first_cause_is_the_innermost_message_of_serves_reports(
    reports: tuple[str, ...], cause: str
) -> None:
    assert local.first_cause(*reports) == cause


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000")]
)
def test_the_url_can_be_opened_on_this_machine(host: str, url: str) -> None:
    assert local.url_of(Settings(host=host)) == url


def test_waiting_ends_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "READY_SECONDS", 0.01)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.0)
    with pytest.raises(local.CannotServe, match="not ready after"):
        local.wait_until_ready("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("readiness", "reason"),
    [
        ('{"ready": false, "stages": {}, "reason": "no image", "failed": true}', "no image"),
        ('{"ready": false, "stages": {}, "reason": "lost", "failed": false}', None),
        ("Route table is not populated yet.", None),
        ("[]", None),
    ],
)
def test_waiting_ends_when_the_model_cannot_draw(readiness: str, reason: str | None) -> None:
    assert local.reason_to_give_up(readiness) == reason
