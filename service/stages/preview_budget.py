"""How finely previews are decoded, and which are dropped, so that they cost no more than they may."""

from collections.abc import Mapping

SMOOTHING = 0.2  # weight of the latest measurement in the mean seconds of a kind of preview
SAVED_PREVIEWS = 8  # at most so many budgets are saved

Kind = tuple[int, int, int]  # height and width of the latents, and the scale by which they are reduced


class PreviewBudget:
    """Chooses the scale of each preview by what earlier ones have cost, files included.

    Every preview brings a budget. The finest scale that fits it is chosen. Where even the coarsest does not,
    the preview is dropped, unless those before it have left enough unspent.
    """

    def __init__(self) -> None:
        self._saved = 0.0
        self._seconds: dict[Kind, float] = {}

    def choose(self, size: tuple[int, int], budget: float, estimates: Mapping[int, float]) -> int | None:
        """The scale of a preview; None if it should be dropped.

        Args:
            size: Height and width of its latents.
            budget: The seconds that it may take.
            estimates: Expected seconds of each scale, the finest first, for scales that were not measured.
        """
        self._saved = min(self._saved + budget, SAVED_PREVIEWS * budget)
        for scale, estimate in estimates.items():
            seconds = self._seconds.get((*size, scale), estimate)
            if seconds <= budget:
                return scale
        return scale if seconds <= self._saved else None

    def spend(self, size: tuple[int, int], scale: int, seconds: float) -> None:
        """Record what a preview has taken."""
        self._saved -= seconds
        mean = self._seconds.get((*size, scale), seconds)
        self._seconds[*size, scale] = mean + SMOOTHING * (seconds - mean)
