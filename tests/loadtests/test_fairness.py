"""The load profile of one greedy API key among polite ones."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import pytest

from loadtests import fairness
from loadtests.results import RequestResult
from loadtests.traces import ScheduledRequest
from tests.service.http.keyed import ADMIN_KEY, make_app, make_keys, make_settings
from tests.service.http_server import served


def test_keys_exist_while_they_are_used(tmp_path: Path) -> None:
    make_keys(tmp_path)
    with served(make_app(make_settings(tmp_path))) as url, fairness.api_keys(url, ADMIN_KEY, 3) as keys:
        assert len(set(keys)) == 3
        for key in keys:
            answer = httpx2.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
    with served(make_app(make_settings(tmp_path))) as url:
        admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        listed = httpx2.get(f"{url}/v1/admin/keys", headers=admin).json()["data"]
    new_keys = [key for key in listed if key["name"].startswith("fairness-")]
    assert [key["revoked"] is not None for key in new_keys] == [True] * 3


async def test_the_greedy_key_sends_ten_times_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a second are served; polite ones take a second, or two beside the greedy key."""
    sent: Counter[tuple[str | None, bool]] = Counter()

    async def sizes(url: str, key: str) -> list[str]:
        return ["8x8"]

    async def replay(
        url: str,
        schedule: Sequence[ScheduledRequest],
        timeout: float = 0.0,
        progress: Callable[[int], None] = print,
        key: str | None = None,
    ) -> list[RequestResult]:
        is_burst = all(request.at == 0.0 for request in schedule)
        if is_burst:
            return [RequestResult(0.0, 0.0, 12.0, 200, None, 1, 0.0, 0) for _ in schedule]
        is_beside = sent[key, False] > 0
        sent[key, is_beside] += len(schedule)
        seconds, status = (2.0 if is_beside else 1.0), (429 if key == "greedy" else 200)
        return [
            RequestResult(request.at, request.at, request.at + seconds, status, None, 1, 0.0, 0)
            for request in schedule
        ]

    monkeypatch.setattr(fairness, "_sizes", sizes)
    monkeypatch.setattr(fairness, "replay", replay)
    keys = [f"polite {number}" for number in range(9)] + ["greedy"]
    result = await fairness.measure("http://service", keys, seconds=200.0, polite_load=0.5)
    assert result.capacity == 2.0
    assert sent["greedy", False] == pytest.approx(2.0 * 200.0, rel=0.2)
    polite = sum(count for (key, _), count in sent.items() if key != "greedy")
    assert polite == result.polite_images == pytest.approx(2 * 9 * 0.5 * 0.2 * 200.0, rel=0.2)
    assert result.alone_p95 == pytest.approx(1.0)
    assert result.beside_p95 == pytest.approx(2.0)
    assert result.ratio == pytest.approx(2.0)
    assert (result.polite_failures, result.greedy_images) == (0, 0)
    assert result.greedy_refused == sent["greedy", False]
