"""The seam between the gateway and whatever draws."""

from collections.abc import Mapping
from typing import Protocol

from safelight.pipeline.params import GenerationParams
from safelight.service.messages import NOBODY, Drawn, Output, StageCensus, Ticket

STAGES = ("encode", "denoise", "decode")


class Backend(Protocol):
    """Draws images. To cancel `draw` is to take the image out of the batch."""

    async def draw(self, params: GenerationParams, output: Output, ticket: Ticket = NOBODY) -> Drawn: ...

    async def census(self) -> Mapping[str, StageCensus | None]:
        """How each of `STAGES` is; None for one that does not answer in time."""
        ...
