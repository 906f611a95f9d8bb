"""Requests made from the OpenAPI schema are answered as it says: `python -m tests.fuzz`, also in short."""

import pytest

from tests.fuzz.run import fuzz

SHORT_EXAMPLES = 12  # to each route


def test_every_answer_is_one_that_the_schema_declares() -> None:
    """Valid requests are drawn, and invalid ones refused."""
    report = fuzz(SHORT_EXAMPLES, is_short=True)
    assert (report.findings, report.errors) == ([], [])
    assert max(report.statuses) < 500
    assert {200, 400, 404} <= report.statuses.keys()
    assert report.num_cases >= 90


@pytest.mark.long
def test_every_answer_to_thousands_of_requests_is_one_that_the_schema_declares() -> None:
    report = fuzz()
    assert (report.findings, report.errors) == ([], [])
    assert max(report.statuses) < 500
    assert report.num_cases >= 5000
