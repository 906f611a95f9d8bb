"""The served models with what draws their images; they may change while images are under way."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.backend import Backend
from safelight.service.errors import ModelNotFound


@dataclass(frozen=True, slots=True, eq=False)
class ModelBackend:
    """A served model, and the backend that draws its images."""

    model: ModelInfo
    backend: Backend


class ModelBackends:
    """The backends of the served models.

    An image that is under way stays with the backend that it began with, also if that is replaced.

    Args:
        current: The models, the default first.
    """

    def __init__(self, current: Sequence[ModelBackend]):
        self._current = tuple(current)
        self._in_flight: Counter[ModelBackend] = Counter()

    @classmethod
    def of_one(cls, model: ModelInfo, backend: Backend) -> "ModelBackends":
        """One model with its backend."""
        return cls([ModelBackend(model, backend)])

    @property
    def current(self) -> tuple[ModelBackend, ...]:
        """The models with their backends, the default first."""
        return self._current

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The models, the default first."""
        return tuple(entry.model for entry in self._current)

    def replace(self, current: Sequence[ModelBackend]) -> None:
        """Serve `current` from now on."""
        self._current = tuple(current)

    def find(self, model_id: str) -> ModelBackend:
        """The backend of a model; of the default one for an empty id.

        Raises `ModelNotFound` for a model that has been removed since the request was read.
        """
        if not model_id:
            return self._current[0]
        for entry in self._current:
            if entry.model.id == model_id:
                return entry
        raise ModelNotFound(f"The model {model_id!r} is not served here any more.", "model")

    def count(self, entry: ModelBackend, change: int) -> None:
        """Count images in flight: `change` more of them."""
        self._in_flight[entry] += change
        if not self._in_flight[entry]:
            del self._in_flight[entry]

    def in_flight(self, model_id: str | None = None) -> int:
        """How many images are in flight; of one model, of all without an id."""
        return self._sum(entry for entry in self._in_flight if model_id is None or entry.model.id == model_id)

    @property
    def retired_in_flight(self) -> int:
        """How many images are in flight with backends that have been removed or replaced."""
        return self._sum(entry for entry in self._in_flight if entry not in self._current)

    def _sum(self, entries: Iterable[ModelBackend]) -> int:
        return sum(self._in_flight[entry] for entry in entries)
