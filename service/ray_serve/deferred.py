"""What one stage will answer, given to the next before it is there."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray.serve.handle import DeploymentResponse

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeferredResult(Generic[T]):
    """A reference that the next stage waits for itself.

    A response that is an argument by itself is waited for by Ray, and when the replica that owes it goes with its node, Serve
    2.60 takes that for news of the replica that it was sent to: it sends the request there again, without end and without
    pause, and its router gets to nothing else. Inside an object Ray leaves it alone.
    """

    reference: Any

    async def value(self) -> T:
        """The answer, fetched from where it is; raises what the stage before raised, or what became of it."""
        value: T = await self.reference
        return value


@dataclass(frozen=True, slots=True)
class ReadyResult(Generic[T]):
    """The same for an answer that is there, in the same process."""

    answer: T

    async def value(self) -> T:
        return self.answer


async def defer(response: DeploymentResponse[T]) -> DeferredResult[T]:
    """As soon as a replica has taken the call, which need not have been answered."""
    return DeferredResult(await response._to_object_ref())
