"""Fair shares of a device between callers: start-time fair queueing of their device-seconds.

After Goyal, Vin and Cheng, "Start-time fair queueing" (SIGCOMM 1996), in its letters. Their packet of flow f
is here one tick of one sample of caller f; l is the device-seconds that it takes, r_f the caller's weight:

    S(p_f^j) = max(v(A(p_f^j)), F(p_f^(j-1)))      start tag; A is the arrival
    F(p_f^j) = S(p_f^j) + l_f^j / r_f              finish tag

Packets are served in the order of their start tags, and v, the virtual time, is the latest start tag that was
served. The next tick of a sample arrives when its last one ends. A caller whose samples were all in the last
tick arrives again, at v or later: so it keeps no claim to time that it left to others.
What differs from the paper, and the bound on how far shares deviate, is in docs/adr/0016-fair-shares.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from safelight.pipeline.params import Share

Packets = Sequence[tuple[Share, float]]  # of a tick: the caller of each sample, and its device-seconds


@dataclass(frozen=True, slots=True)
class Tags:
    """The state after a tick.

    Attributes:
        virtual_time: v.
        finish: F of the last packet of each caller of whom that is more than v, or who waits.
        passed_over: Callers of whom the tick left samples waiting.
        tick_seconds: What the tick took.
    """

    virtual_time: float = 0.0
    finish: Mapping[str, float] = field(default_factory=dict)
    passed_over: Set[str] = frozenset()
    tick_seconds: float = 0.0

    def start_of(self, share: Share) -> float:
        """S of a caller's next packet."""
        arrival = self.virtual_time
        if share.caller in self.passed_over:
            # It has not arrived anew, so its tag may lie before v: by a packet, or by more if its samples did
            # not fit beside others. It may make up for one tick of that.
            arrival -= self.tick_seconds / share.weight
        return max(arrival, self.finish.get(share.caller, self.virtual_time))

    def after(self, packets: Packets, passed_over: Set[str]) -> Tags:
        """The state after a tick of `packets`; see `FairShares.dispatch`."""
        tags: dict[str, float] = {}
        virtual_time = self.virtual_time
        for share, seconds in packets:
            start = tags[share.caller] if share.caller in tags else self.start_of(share)
            virtual_time = max(virtual_time, start)
            tags[share.caller] = start + seconds / share.weight
        arrived = dict.fromkeys(passed_over, self.virtual_time)  # of callers who have not had anything yet
        finish = {
            caller: tag
            for caller, tag in (arrived | dict(self.finish) | tags).items()
            if tag > virtual_time or caller in passed_over
        }
        return Tags(virtual_time, finish, passed_over, sum(seconds for _, seconds in packets))

    def charged(self, share: Share, seconds: float) -> Tags:
        """The state after a caller has used seconds outside of ticks."""
        finish = self.finish.get(share.caller, self.virtual_time) + seconds / share.weight
        return replace(self, finish=dict(self.finish) | {share.caller: finish})


class FairShares:
    """The tags of an engine's callers.

    A tick is charged by what it is expected to take until it is measured.
    """

    def __init__(self, tags: Tags | None = None):
        self._tags = self._measured = tags or Tags()  # at present; after the last tick that is measured
        self._in_flight: deque[tuple[Packets, Set[str]]] = deque()  # the ticks between these two

    def start_tag(self, share: Share) -> float:
        """S of a caller's next packet: of callers who wait, the one with the smallest is served first."""
        return self._tags.start_of(share)

    def dispatch(self, packets: Packets, passed_over: Set[str]) -> None:
        """Charge the callers of a tick that begins.

        Args:
            packets: Whose the samples of the tick are, and the device-seconds that each is expected to take.
            passed_over: Callers of whom the tick leaves samples waiting.
        """
        self._in_flight.append((packets, passed_over))
        self._tags = self._tags.after(packets, passed_over)

    def measure(self, packets: Packets) -> None:
        """Charge the oldest tick that was not measured by what it took: the same samples as in `dispatch`."""
        _, passed_over = self._in_flight.popleft()
        self._tags = self._measured = self._measured.after(packets, passed_over)
        for expected, waiting in self._in_flight:
            self._tags = self._tags.after(expected, waiting)

    def charge(self, share: Share, seconds: float) -> None:
        """Charge a caller for what was computed outside of ticks."""
        self._measured = self._measured.charged(share, seconds)
        self._tags = self._tags.charged(share, seconds)

    def rest(self) -> None:
        """End a busy period: no caller has any sample left, and all are equal again."""
        if self._tags.finish:
            self._tags = self._measured = Tags(max(self._tags.virtual_time, *self._tags.finish.values()))

    def copy(self) -> FairShares:
        """The same tags, for a forecast."""
        return FairShares(self._tags)
