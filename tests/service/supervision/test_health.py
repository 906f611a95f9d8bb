"""What is observed of a service, and when it is given up."""

import pytest

from safelight.service.runtime.readiness import ReadinessAnswer
from safelight.service.supervision.health import HEAL_SECONDS, SILENT_SECONDS, ServiceHealth

READY = ReadinessAnswer(True, False, "ready")
LOST = ReadinessAnswer(False, False, "no denoise")
BROKEN = ReadinessAnswer(False, True, "no image")


@pytest.fixture
def health() -> ServiceHealth:
    return ServiceHealth(100.0)


def test_a_ready_service_is_never_given_up(health: ServiceHealth) -> None:
    """Not even one whose Ray is silent: it serves."""
    assert health.observe(100.0, READY) == ""
    assert health.reason_to_end(100.0 + 10 * HEAL_SECONDS) is None


def test_what_heals_is_logged_once_and_waited_for(health: ServiceHealth) -> None:
    assert health.observe(110.0, LOST) == (
        "not ready (no denoise); waiting for Ray Serve to replace what has failed"
    )
    health.beat(111.0)
    assert health.observe(112.0, LOST) == ""
    assert health.reason_to_end(112.0) is None
    assert health.observe(117.0, READY) == "ready again after 7 seconds"
    assert health.observe(118.0, READY) == ""
    assert health.reason_to_end(118.0 + 10 * HEAL_SECONDS) is None


def test_a_service_whose_ray_is_silent_is_given_up(health: ServiceHealth) -> None:
    health.beat(105.0)
    health.observe(110.0, LOST)
    assert health.reason_to_end(105.0 + SILENT_SECONDS) is None
    reason = health.reason_to_end(106.0 + SILENT_SECONDS)
    assert reason == f"Ray has not answered for {SILENT_SECONDS + 1:g} seconds: no denoise"
    assert SILENT_SECONDS < 60.0


def test_silence_while_it_was_ready_counts(health: ServiceHealth) -> None:
    """As soon as it is not ready, nothing is left that would replace what has failed."""
    health.observe(100.0 + 2 * SILENT_SECONDS, LOST)
    assert health.reason_to_end(101.0 + 2 * SILENT_SECONDS) is not None


def test_a_service_that_does_not_heal_is_given_up(health: ServiceHealth) -> None:
    health.observe(110.0, LOST)
    health.beat(109.0 + HEAL_SECONDS)
    assert health.reason_to_end(110.0 + HEAL_SECONDS) is None
    assert (
        health.reason_to_end(111.0 + HEAL_SECONDS)
        == f"not ready for {HEAL_SECONDS + 1:g} seconds: no denoise"
    )


def test_a_stage_that_cannot_be_started_again_ends_a_service_that_is_not_ready(health: ServiceHealth) -> None:
    health.beat(105.0, "Denoiser cannot be started again: no weights")
    assert health.reason_to_end(106.0) is None  # another replica serves
    health.observe(107.0, LOST)
    assert health.reason_to_end(107.0) == "Denoiser cannot be started again: no weights"
    health.beat(108.0)  # it could, after all
    assert health.reason_to_end(108.0) is None


def test_a_model_that_draws_no_image_any_more_ends_the_service(health: ServiceHealth) -> None:
    health.observe(107.0, BROKEN)
    assert health.reason_to_end(107.0) == "the warm-up image failed: no image"
