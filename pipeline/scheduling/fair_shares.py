"""Fair shares of a device between callers: start-time fair queueing of their device-seconds.

After Goyal, Vin and Cheng, "Start-time fair queueing" (SIGCOMM 1996), in its letters. Their packet of flow f
is here one tick of one sample of caller f; l is the device-seconds that it takes, r_f the caller's weight:

    S(p_f^j) = max(v(A(p_f^j)) - H / r_f, F(p_f^(j-1)))      start tag; A is the arrival
    F(p_f^j) = S(p_f^j) + l_f^j / r_f                        finish tag

Packets are served in the order of their start tags, and v, the virtual time, is the latest start tag that was
served. The next tick of a sample arrives when its last one ends. In the paper H is 0. Here a caller who used
less than its share may make up for H device-seconds of it, and no more.
Why, and the bound on how far shares deviate: docs/adr/0016-fair-shares.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter

from safelight.pipeline.params import Share

CREDIT_TICKS = 32.0  # H in full ticks
Packets = Sequence[tuple[Share, float]]  # of a tick: whose each sample is, and its device-seconds


@dataclass(frozen=True, slots=True)
class Tags:
    """The state after a tick.

    Attributes:
        virtual_time: v.
        finish: F of the last packet of each caller, or S of the next one of a caller who waits, unless that
            is what a caller who has had nothing would get.
        waiting: Callers of whom the tick left samples waiting.
        credit: H.
        tick_seconds: What the tick took.
    """

    virtual_time: float = 0.0
    finish: Mapping[Share, float] = field(default_factory=dict)
    waiting: Set[Share] = frozenset()
    credit: float = 0.0
    tick_seconds: float = 0.0

    def start_of(self, share: Share) -> float:
        """S of a caller's next packet."""
        claim = self.credit
        if share in self.waiting:
            # It has not arrived anew, so its tag may lie further back: by a packet, or by more if its samples
            # did not fit beside others. It may make up for one tick of that.
            claim += self.tick_seconds
        return max(self.virtual_time - claim / share.weight, self.finish.get(share, -math.inf))

    def after(self, packets: Packets, waiting: Set[Share], credit: float) -> Tags:
        """The state after a tick; see `FairShares.dispatch`."""
        starts = {share: self.start_of(share) for share in waiting}
        tags: dict[Share, float] = {}
        virtual_time = self.virtual_time
        for share, group in groupby(packets, itemgetter(0)):  # hashing every packet's share would cost more
            seconds = [seconds for _, seconds in group]
            start = tags[share] if share in tags else self.start_of(share)
            tags[share] = start + sum(seconds) / share.weight
            virtual_time = max(virtual_time, tags[share] - seconds[-1] / share.weight)
        finish = {
            share: tag
            for share, tag in (dict(self.finish) | starts | tags).items()
            if share in waiting or tag > virtual_time - credit / share.weight
        }
        return Tags(virtual_time, finish, waiting, credit, sum(map(itemgetter(1), packets)))

    def charged(self, share: Share, seconds: float) -> Tags:
        """The state after a caller has used seconds outside of ticks."""
        finish = self.start_of(share) + seconds / share.weight
        return replace(self, finish=dict(self.finish) | {share: finish})


class FairShares:
    """The tags of an engine's callers.

    A tick is charged by what it is expected to take until it is measured.

    Args:
        credit_ticks: H in full ticks.
    """

    def __init__(self, credit_ticks: float = CREDIT_TICKS):
        self._credit_ticks = credit_ticks
        self._tags = self._measured = Tags()  # at present; after the last tick that is measured
        # the ticks between these two, and H at each
        self._in_flight: deque[tuple[Packets, Set[Share], float]] = deque()

    def start_tag(self, share: Share) -> float:
        """S of a caller's next packet: of callers who wait, the one with the smallest is served first."""
        return self._tags.start_of(share)

    def has_credit(self, share: Share, tag: float) -> bool:
        """Whether a caller with this start tag has at least half of what it may make up for."""
        return 0 < self._tags.credit <= 2 * share.weight * (self._tags.virtual_time - tag)

    def is_borrowing(self, share: Share, tag: float) -> bool:
        """Whether a caller with this start tag takes what others leave: it has its share, and yet waits."""
        return share in self._tags.waiting and tag >= self._tags.virtual_time

    def dispatch(self, packets: Packets, waiting: Set[Share], full_tick_seconds: float) -> None:
        """Charge the callers of a tick that begins; background has no share, and is not charged.

        Args:
            packets: Whose the samples of the tick are, and the device-seconds that each is expected to take.
            waiting: Callers of whom the tick leaves samples waiting.
            full_tick_seconds: What a full tick takes.
        """
        credit = self._credit_ticks * full_tick_seconds
        packets, waiting = _foreground(packets), {share for share in waiting if not share.is_background}
        self._in_flight.append((packets, waiting, credit))
        self._tags = self._tags.after(packets, waiting, credit)

    def measure(self, packets: Packets) -> None:
        """Charge the oldest tick that was not measured by what it took: the same samples as in `dispatch`."""
        _, waiting, credit = self._in_flight.popleft()
        self._tags = self._measured = self._measured.after(_foreground(packets), waiting, credit)
        for tick in self._in_flight:
            self._tags = self._tags.after(*tick)

    def charge(self, share: Share, seconds: float) -> None:
        """Charge a caller for what was computed outside of ticks."""
        if share.is_background:
            return
        self._measured = self._measured.charged(share, seconds)
        self._tags = self._tags.charged(share, seconds)

    def rest(self) -> None:
        """End a busy period: no caller has any sample left, and all are equal again."""
        if self._tags.finish:
            latest = max(self._tags.virtual_time, *self._tags.finish.values())
            self._tags = self._measured = Tags(latest, credit=self._tags.credit)

    def copy(self) -> FairShares:
        """The same tags, for a forecast."""
        shares = FairShares(self._credit_ticks)
        shares._tags = shares._measured = self._tags
        return shares


def _foreground(packets: Packets) -> Packets:
    return [packet for packet in packets if not packet[0].is_background]
