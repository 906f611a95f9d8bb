"""Fair shares between callers: the bound on their service, no starvation, and one caller's order."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.pipeline.params import ONLY_CALLER, Share
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.fair_shares import CREDIT_TICKS, FairShares, Packets, Tags
from safelight.pipeline.scheduling.forecast import finish_times
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.selection import (
    MAX_STRETCH,
    full_tick_seconds,
    max_running,
    passed_over,
    select_next_batch,
)
from safelight.pipeline.scheduling.simulation import SimulatedSample, fair_rule, simulate
from safelight.pipeline.scheduling.workload import make_workload

PROPORTIONAL = CostCurve((1.0,), (0.004,))
CURVE = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0), (0.008, 0.012, 0.020, 0.034, 0.062))
LIMITS = Limits(16, 10**6)
ROUNDING = 1e-9


def make_sample(
    caller: str, steps: int, rows: int = 2, arrived: float = 0.0, weight: float = 1.0, tokens: int = 64
) -> SimulatedSample:
    work = [float(rows * tokens) / 64] * steps
    workload = make_workload([rows] * steps, work, tokens, CURVE, arrived)
    return SimulatedSample(replace(workload, share=Share(caller, weight)))


@dataclass
class Server:
    """A denoiser whose ticks take another time than the curve says.

    Attributes:
        limits: Of a tick.
        curve: By which samples are selected.
        slowness: What a tick takes, as a multiple of the curve.
        in_flight: Ticks that are queued before the first of them is measured.
    """

    limits: Limits = LIMITS
    curve: CostCurve = CURVE
    slowness: Callable[[], float] = lambda: 1.0
    in_flight: int = 0
    shares: FairShares = field(default_factory=lambda: FairShares(credit_ticks=0.0))
    queue: WaitingQueue[SimulatedSample] = field(default_factory=WaitingQueue)
    running: list[SimulatedSample] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # device-seconds by caller
    waiting: frozenset[str] = frozenset()  # whom the last tick passed over
    now: float = 0.0
    unmeasured: list[Packets] = field(default_factory=list)
    largest_packet: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    largest_tick: float = 0.0
    # A tick's seconds, as multiples of the price by which its samples are ordered.
    least_ratio: float = 1.0
    largest_ratio: float = 1.0

    def tick(self) -> list[SimulatedSample]:
        """Run one tick; returns its samples."""
        selected = select_next_batch(self.running, self.queue, self.now, self.limits, self.curve, self.shares)
        for sample in selected:
            if sample.step_index == 0:
                self.queue.remove(sample)
                self.running.append(sample)
        waiting = self.queue.shares | passed_over(self.running, selected)
        self.waiting = frozenset(share.caller for share in waiting)
        work = [sample.workload.work[sample.step_index] for sample in selected]
        expected = self.curve.seconds_for(sum(work))
        seconds = expected * self.slowness()
        owners = [sample.workload.share for sample in selected]
        packets = [(share, expected * part / sum(work)) for share, part in zip(owners, work, strict=True)]
        self.shares.dispatch(packets, waiting, full_tick_seconds(self.curve))
        self._charge([(share, part * seconds / expected) for share, part in packets])
        self.now += seconds
        self.largest_tick = max(self.largest_tick, seconds)
        price = self.curve.seconds_for(self.curve.work[-1]) / self.curve.work[-1]
        ratio = seconds / (price * sum(work))
        self.least_ratio, self.largest_ratio = min(self.least_ratio, ratio), max(self.largest_ratio, ratio)
        for sample in selected:
            sample.step_index += 1
            sample.done_at = self.now
        self.running = [sample for sample in self.running if sample.step_index < sample.workload.num_ticks]
        return selected

    def _charge(self, packets: Packets) -> None:
        """Charge a tick, or, if several may be in flight, an earlier one."""
        for share, seconds in packets:
            self.served[share.caller] += seconds
            self.largest_packet[share.caller] = max(self.largest_packet[share.caller], seconds)
        self.unmeasured.append(packets)
        while len(self.unmeasured) > self.in_flight:
            self.shares.measure(self.unmeasured.pop(0))


def largest_lag(
    server: Server, weights: Mapping[str, float], ticks: int, refill: Callable[[Server], None]
) -> dict[tuple[str, str], float]:
    """The largest |W_f / r_f - W_m / r_m| of each pair, over all intervals in which both are backlogged."""
    lags: dict[tuple[str, str], float] = defaultdict(float)
    bounds: dict[tuple[str, str], tuple[float, float]] = {}  # of the difference since both are backlogged
    for _ in range(ticks):
        refill(server)
        before = dict(server.served)
        server.tick()
        for pair in combinations(sorted(weights), 2):
            if not server.waiting.issuperset(pair):
                bounds.pop(pair, None)
                continue
            was = before.get(pair[0], 0.0) / weights[pair[0]] - before.get(pair[1], 0.0) / weights[pair[1]]
            difference = server.served[pair[0]] / weights[pair[0]] - server.served[pair[1]] / weights[pair[1]]
            low, high = bounds.get(pair, (was, was))
            lags[pair] = max(lags[pair], difference - low, high - difference)
            bounds[pair] = min(low, difference), max(high, difference)
    return lags


WEIGHTS = st.dictionaries(
    st.sampled_from("abcde"), st.sampled_from([0.5, 1.0, 2.0, 3.0, 7.0]), min_size=2, max_size=5
)


def refill_with(
    data: st.DataObject, weights: Mapping[str, float], rows: st.SearchStrategy[int]
) -> Callable[[Server], None]:
    """Keeps the first two callers backlogged, and lets the others come and go."""

    def refill(server: Server) -> None:
        for number, (caller, weight) in enumerate(sorted(weights.items())):
            mine = server.queue.num_of(caller)
            target = 20 if number < 2 else data.draw(st.sampled_from([0, 0, 0, 3, 12]))
            for _ in range(mine, target):
                steps = data.draw(st.sampled_from([1, 4, 9]))
                server.queue.add(make_sample(caller, steps, data.draw(rows), server.now, weight))

    return refill


@settings(max_examples=25, deadline=None)
@given(data=st.data(), weights=WEIGHTS, max_rows=st.sampled_from([2, 4, 16]))
def test_shares_differ_by_at_most_one_packet_of_each(
    data: st.DataObject, weights: dict[str, float], max_rows: int
) -> None:
    """Theorem 1 of the paper: |W_f / r_f - W_m / r_m| <= l_f / r_f + l_m / r_m."""
    server = Server(Limits(max_rows, 10**6), PROPORTIONAL)
    lags = largest_lag(server, weights, 25, refill_with(data, weights, st.just(2)))
    assert lags
    for (f, m), lag in lags.items():
        packets = server.largest_packet
        assert lag <= packets[f] / weights[f] + packets[m] / weights[m] + ROUNDING


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    weights=WEIGHTS,
    slowness=st.lists(st.floats(0.7, 1.4), min_size=1, max_size=7),
    in_flight=st.integers(0, 1),
)
def test_shares_are_those_of_measured_seconds(
    data: st.DataObject, weights: dict[str, float], slowness: list[float], in_flight: int
) -> None:
    """Ticks take up to 1.4 times what the curve says, and the next may begin before that is known."""
    times = cycle(slowness)
    server = Server(slowness=lambda: next(times), in_flight=in_flight, shares=FairShares(credit_ticks=1.0))
    lags = largest_lag(server, weights, 25, refill_with(data, weights, st.just(2)))
    assert lags
    late = in_flight * max(1.0 - server.least_ratio, server.largest_ratio - 1.0) * server.largest_tick
    spread = server.largest_ratio / server.least_ratio
    for pair, lag in lags.items():
        packet = max((server.largest_packet[caller] + late) / weights[caller] for caller in pair)
        credit = sum(full_tick_seconds(CURVE) / weights[caller] for caller in pair)
        assert lag <= 2 * packet * spread + credit + ROUNDING


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    num_others=st.integers(1, 12),
    max_rows=st.sampled_from([2, 4, 16]),
    tokens=st.sampled_from([64, 256]),
    weight=st.sampled_from([0.25, 1.0, 4.0]),
)
def test_no_sample_starves(
    data: st.DataObject, num_others: int, max_rows: int, tokens: int, weight: float
) -> None:
    """However many samples of any kind others send, and also if there are more callers than places."""
    limits, most_ticks = Limits(max_rows, 16 * 64), 9
    server = Server(limits, shares=FairShares())
    others = [f"other {number}" for number in range(num_others)]

    def refill() -> None:
        for other in others:
            for _ in range(server.queue.num_of(other), 4):
                steps = data.draw(st.sampled_from([1, 2, most_ticks]))
                server.queue.add(make_sample(other, steps, data.draw(st.integers(1, 2)), server.now))

    for _ in range(data.draw(st.integers(0, 5))):
        refill()
        server.tick()
    sample = make_sample("polite", 5, arrived=server.now, weight=weight, tokens=tokens)
    server.queue.add(sample)
    # For each packet of its own, every other caller has as many seconds in proportion, a packet, and a tick
    # in which the sample does not fit; before the first, all samples that have started may have to finish.
    # A row alone in a tick takes twice as long as one of sixteen.
    packets = sample.workload.num_ticks * num_others * (2.1 * tokens / 64 * 2 / weight + 3)
    # Others may come with all their credit, in ticks of one row, which take an eighth of a full one.
    packets += 8 * CREDIT_TICKS * num_others
    for _ in range(round(packets + most_ticks * max_running(limits)) + 1):
        refill()
        server.tick()
        if sample.done_at and sample.step_index == 5:
            return
    raise AssertionError(f"after {server.now} s it has done {sample.step_index} ticks")


def reference_selection(
    samples: Sequence[SimulatedSample], now: float, limits: Limits, curve: CostCurve
) -> list[SimulatedSample]:
    """The samples of a tick by priority alone, as they were selected before there were callers."""
    selected: list[SimulatedSample] = []
    rows = tokens = 0
    work = 0.0
    for sample in sorted(samples, key=lambda s: s.workload.priority(s.step_index, now, curve.slowdown)):
        num_rows = sample.workload.rows[sample.step_index]
        flops = sample.workload.work[sample.step_index]
        fits = (
            rows + num_rows <= limits.max_rows
            and tokens + num_rows * sample.workload.tokens <= limits.max_tokens
        )
        if selected and not (fits and work + flops <= curve.best_work):
            continue
        selected.append(sample)
        rows, tokens, work = rows + num_rows, tokens + num_rows * sample.workload.tokens, work + flops
        if rows == limits.max_rows:
            break
    return selected


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    share=st.sampled_from([ONLY_CALLER, Share("key_1", 5.0)]),
    limits=st.sampled_from([LIMITS, Limits(4, 300)]),
    curve=st.sampled_from([CURVE, CostCurve((1.0, 2.0, 4.0, 8.0), (0.01, 0.02, 0.04, 0.10))]),
)
def test_one_caller_has_the_order_of_priority_alone(
    data: st.DataObject, share: Share, limits: Limits, curve: CostCurve
) -> None:
    """Tick by tick, whatever arrives."""
    server = Server(limits, curve)
    samples = st.builds(
        make_sample,
        caller=st.just(share.caller),
        steps=st.integers(1, 12),
        rows=st.integers(1, 2),
        weight=st.just(share.weight),
        tokens=st.sampled_from([16, 64, 256]),
    )
    for _ in range(25):
        for sample in data.draw(st.lists(samples, max_size=4)):
            sample.workload = replace(sample.workload, arrived=server.now)
            server.queue.add(sample)
        if not (server.running or len(server.queue)):
            continue
        room = max(0, 2 * limits.max_rows - len(server.running))
        candidates = [*server.running, *server.queue.earliest_due(room, server.now, 1.0)]
        expected = reference_selection(candidates, server.now, limits, curve)
        assert server.tick() == expected


def counts(samples: Sequence[SimulatedSample]) -> Counter[str]:
    return Counter(sample.workload.share.caller for sample in samples)


def test_an_idle_share_is_lent_and_taken_back_within_a_tick() -> None:
    """The one who was idle has its half at once, and no more than that, however long it was idle."""
    server = Server()
    for _ in range(400):
        server.queue.add(make_sample("greedy", 40))
    for _ in range(100):
        assert counts(server.tick()) == {"greedy": 8}
    for _ in range(3):
        for _ in range(8):
            server.queue.add(make_sample("polite", 5, arrived=server.now))
        ticks = [counts(server.tick()) for _ in range(6)]
        assert all(tick == {"greedy": 4, "polite": 4} for tick in ticks)
        while "polite" in server.queue.callers or "polite" in counts(server.running):
            server.tick()
        for _ in range(50):
            assert counts(server.tick()) == {"greedy": 8}


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_caller_makes_up_for_a_bounded_part_of_what_it_left(weight: float) -> None:
    """However long it was idle: its credit in device-seconds, and then its share."""
    server = Server(shares=FairShares())
    for _ in range(900):
        server.queue.add(make_sample("greedy", 40))
    for _ in range(200):
        server.tick()
    for _ in range(900):
        server.queue.add(make_sample("polite", 40, arrived=server.now, weight=weight))
    server.served.clear()
    for _ in range(300):
        server.tick()
    ahead = server.served["polite"] / weight - server.served["greedy"]
    credit = CREDIT_TICKS * full_tick_seconds(CURVE) / weight
    assert ahead == pytest.approx(credit, abs=2 * server.largest_packet["polite"])


def test_a_borrower_does_not_stretch_the_ticks_of_others() -> None:
    """Unless they have used up their credit, or wait themselves, and so are above their share too."""
    server = Server(shares=FairShares())
    for _ in range(400):
        server.queue.add(make_sample("greedy", 40, rows=1))
    for _ in range(20):
        server.tick()
    for _ in range(2):
        server.queue.add(make_sample("polite", 40, arrived=server.now))
    assert counts(server.tick()) == {"polite": 2, "greedy": 1}  # of 4 rows and 1
    assert CURVE.seconds_for(5.0) <= MAX_STRETCH * CURVE.seconds_for(4.0) < CURVE.seconds_for(6.0)
    for _ in range(2):
        server.queue.add(make_sample("polite", 40, arrived=server.now))
    assert counts(server.tick()) == {"polite": 4, "greedy": 2}
    for _ in range(400):
        server.queue.add(make_sample("polite", 40, arrived=server.now))
    for _ in range(100):
        selected = server.tick()
    assert sum(sample.workload.rows[0] for sample in selected) == 16


def test_a_sample_under_way_is_held_back_while_its_caller_is_ahead() -> None:
    """One sample fits a tick: those of two callers take turns, by weight."""
    server = Server(Limits(2, 10**6))
    first, second = make_sample("a", 9, weight=2.0), make_sample("b", 9)
    server.queue.add(first)
    server.tick()
    server.queue.add(second)
    for _ in range(6):
        server.tick()
    assert (first.step_index, second.step_index) == (5, 2)


def test_callers_without_a_running_sample_are_not_kept_out() -> None:
    """Of the places for running samples, each caller that waits has one, though others want them all."""
    server = Server(Limits(2, 10**6))  # four places
    for _ in range(20):
        server.queue.add(make_sample("greedy", 30))
    for number in range(3):
        server.queue.add(make_sample(f"polite {number}", 30))
    for _ in range(12):
        server.tick()
    assert counts(server.running) == {"greedy": 1, "polite 0": 1, "polite 1": 1, "polite 2": 1}
    server.queue.add(make_sample("late", 1, arrived=server.now))
    while not any(sample.step_index == 30 for sample in server.tick()):
        assert len(server.running) == 4
    assert "late" in counts(server.tick())


def test_places_are_kept_for_callers_who_have_none() -> None:
    """Two are left, and two such callers wait: a third does not start a further sample, however short."""
    running = [make_sample("greedy", 30) for _ in range(2)]
    queue = WaitingQueue[SimulatedSample]()
    for caller, steps in (("greedy", 1), ("a", 30), ("b", 30)):
        queue.add(make_sample(caller, steps))
    limits = Limits(2, 10**6)
    assert select_next_batch(running, queue, 0.0, limits, CURVE, FairShares()) == running[:1]
    queue.remove(queue.first_of("b"))
    assert select_next_batch(running, queue, 0.0, limits, CURVE, FairShares()) == [queue.first_of("greedy")]


def test_only_a_caller_who_waits_is_a_borrower() -> None:
    """One of whom all samples were in the tick has what it wants, whatever its tag."""
    waits, is_served = Share("a"), Share("b")
    shares = FairShares()
    packets = [(waits, 1.0), (is_served, 1.0)]
    shares.dispatch(packets, {waits}, 0.1)
    for share in (waits, is_served):
        assert shares.is_borrowing(share, shares.start_tag(share)) is (share is waits)
        assert not shares.is_borrowing(share, shares.start_tag(Share("new")))


def test_without_a_place_the_started_samples_go_on() -> None:
    """As after a tick that did not fit into memory: more have started than may, some without any tick."""
    running = [make_sample(caller, 3) for caller in "aabbcc"]
    queue = WaitingQueue[SimulatedSample]()
    queue.add(make_sample("d", 3))
    selected = select_next_batch(running, queue, 0.0, Limits(2, 10**6), CURVE, FairShares())
    assert len(selected) == 1 and selected[0] in running


def test_forecasts_know_the_shares() -> None:
    """A caller's image behind three hundred of another is not forecast to wait for them."""
    server = Server()
    for _ in range(300):
        server.queue.add(make_sample("greedy", 40))
    for _ in range(20):
        server.tick()
    sample = make_sample("polite", 40, arrived=server.now)
    server.queue.add(sample)
    waiting = list(server.queue)
    seconds = finish_times(server.running, server.queue, server.now, LIMITS, CURVE, shares=server.shares)[
        len(server.running) + waiting.index(sample)
    ]
    started = server.now
    while sample.step_index != 40:
        server.tick()
    assert seconds == pytest.approx(sample.done_at - started, rel=0.05)
    assert seconds < 3.0


def test_a_tick_is_charged_as_expected_until_it_is_measured() -> None:
    a, b = Share("a"), Share("b", 2.0)
    shares = FairShares(credit_ticks=0.0)
    shares.dispatch([(a, 1.0), (b, 1.0)], {a, b}, 1.0)
    assert (shares.start_tag(a), shares.start_tag(b)) == (1.0, 0.5)
    shares.dispatch([(b, 1.0)], {a, b}, 1.0)
    shares.measure([(a, 3.0), (b, 3.0)])
    assert (shares.start_tag(a), shares.start_tag(b)) == (3.0, 2.0)
    shares.charge(b, 1.0)
    shares.measure([(b, 4.0)])
    assert (shares.start_tag(a), shares.start_tag(b)) == (3.0, 4.0)
    assert shares.start_tag(Share("new")) == 2.0  # where the last packet started


def test_callers_are_forgotten_when_they_are_not_ahead() -> None:
    tags = Tags()
    for number in range(50):
        tags = tags.after([(Share(f"once {number}"), 1.0), (Share("always"), 1.0)], set(), credit=0.0)
    assert len(tags.finish) <= 3
    shares = FairShares()
    shares.dispatch([(Share("always"), 9.0)], set(), 0.1)
    shares.measure([(Share("always"), 9.0)])
    assert shares.start_tag(Share("new")) < shares.start_tag(Share("always"))
    shares.rest()
    assert shares.start_tag(Share("new")) == shares.start_tag(Share("always"))


def test_a_simulation_by_the_engines_rule_is_fair() -> None:
    """Of 60 images of one caller and 20 of another, the others' are done in the first half of the time."""
    samples = [make_sample("greedy", 10) for _ in range(60)] + [make_sample("polite", 10) for _ in range(20)]
    done = simulate(samples, fair_rule(LIMITS, CURVE), CURVE)
    last = max(sample.done_at for sample in done if sample.workload.share.caller == "polite")
    assert last == pytest.approx(0.5 * done[-1].done_at, rel=0.1)
