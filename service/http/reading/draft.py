"""The fields of a request while they are read."""

from dataclasses import dataclass, field

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.http.reading.adjustments import adjustment
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.schemas import Adjustment


@dataclass
class Draft:
    """What has been understood of a request.

    Attributes:
        names: The names of the served models.
        model: The one that is asked for.
        values: The values by the names of the request's fields.
        sent_names: The client's names of these fields.
        adjustments: What was read in another way than it was written.
    """

    names: ModelNames
    model: ModelInfo
    values: dict[str, object] = field(default_factory=dict)
    sent_names: dict[str, str] = field(default_factory=dict)
    adjustments: list[Adjustment] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Whether the field has a value; null is none."""
        return self.values.get(name) is not None

    def put(self, name: str, value: object, sent_name: str) -> None:
        """Give the field `name` a value, which the client sent as `sent_name`."""
        self.values[name], self.sent_names[name] = value, sent_name

    def adjust(self, sent_name: str, asked: object, used: object, note: str) -> None:
        """List a value that was read as another."""
        self.adjustments.append(adjustment(sent_name, asked, used, note))

    def drop(self, sent_name: str, asked: object, note: str) -> None:
        """List a value that has no effect."""
        self.adjust(sent_name, asked, None, note)
