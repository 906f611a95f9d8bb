"""Results of one stage that are passed to the next before they exist."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray.serve.handle import DeploymentResponse

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeferredResult(Generic[T]):
    """A reference to the previous stage's result, which the next stage awaits in its own code.

    A bare reference as an argument would be awaited by Ray before the call. If the replica that owes the
    result dies with its node, Serve 2.60 takes the error for the death of the replica that it called. It then
    repeats the call without end and without pause, and its router stalls. Inside an object Ray leaves the
    reference alone.
    """

    reference: Any

    async def value(self) -> T:
        """The result, fetched from where it is; raises the previous stage's error."""
        value: T = await self.reference
        return value


@dataclass(frozen=True, slots=True)
class ReadyResult(Generic[T]):
    """A result that exists already, in this process."""

    result: T

    async def value(self) -> T:
        return self.result


async def defer(response: DeploymentResponse[T]) -> DeferredResult[T]:
    """A reference to the result of `response`; returns when a replica has accepted the call."""
    return DeferredResult(await response._to_object_ref())
