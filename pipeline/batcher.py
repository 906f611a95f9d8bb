"""Who waits and who runs: first come, first served, as many samples as their rows fit."""

from collections import deque
from dataclasses import dataclass, field

from pipeline.request import Sample, Waiting


@dataclass(slots=True)
class Batcher:
    """The waiting and the running samples; rows of running samples never exceed `max_rows`."""

    max_rows: int
    waiting: deque[Waiting] = field(default_factory=deque)
    running: list[Sample] = field(default_factory=list)

    def admit(self) -> list[Waiting]:
        """Take out the waiting samples, in order, that fit beside the running ones: who calls begins them and lets them `join`.

        Nobody overtakes: a sample of two rows that does not fit keeps its place. A sample counts with the most rows that
        it will yet need, so that what guidance frees for good is refilled at once, and what it needs again is kept.
        """
        admitted = []
        rows = sum(s.most_rows for s in self.running)
        while self.waiting and rows + self.waiting[0].most_rows <= self.max_rows:
            sample = self.waiting.popleft()
            rows += sample.most_rows
            admitted.append(sample)
        return admitted

    def join(self, sample: Sample) -> None:
        """Let a sample that has begun run."""
        self.running.append(sample)

    def remove(self, request_id: str) -> Sample | Waiting | None:
        """Take a sample out, wherever it is; None if it is not here."""
        for waiting in self.waiting:
            if waiting.request_id == request_id:
                self.waiting.remove(waiting)
                return waiting
        for running in self.running:
            if running.request_id == request_id:
                self.running.remove(running)
                return running
        return None

    def leave(self) -> list[Sample]:
        """Take out and return the running samples whose last tick is done."""
        done = [s for s in self.running if s.is_done]
        self.running = [s for s in self.running if not s.is_done]
        return done
