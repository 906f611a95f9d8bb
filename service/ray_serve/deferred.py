"""References to results of one stage, passed to the next stage before the results exist."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from safelight.service.errors import StageLost, as_service_error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeferredResult(Generic[T]):
    """A reference to the previous stage's result, which the next stage awaits in its own code.

    Ray would await a bare reference among the arguments before the call. If the replica that computes the
    result then dies with its node, Serve 2.60 takes the error for the death of the called replica: it repeats
    the call without end and without pause, and its router stalls. Ray does not look for references inside an
    object.
    """

    reference: Any
    stage: str = ""  # that computes it

    async def value(self) -> T:
        """Wait for the result and fetch it; raises the previous stage's error."""
        try:
            value: T = await self.reference
        except Exception as error:
            if lost := loss_of(error, self.stage):
                raise lost from error
            raise
        return value


@dataclass(frozen=True, slots=True)
class ReadyResult(Generic[T]):
    """A result that exists already in this process, with the interface of `DeferredResult`."""

    result: T

    async def value(self) -> T:
        return self.result


@dataclass(frozen=True, slots=True)
class PostponedResult(Generic[T]):
    """A result of this process that is computed when it is awaited."""

    compute: Callable[[], Awaitable[T]]

    async def value(self) -> T:
        return await self.compute()


async def defer(response: DeploymentResponse[T], stage: str) -> DeferredResult[T]:
    """A reference to the result of `response` of a stage; returns when a replica has accepted the call."""
    return DeferredResult(await response._to_object_ref(), stage)


async def defer_items(
    response: DeploymentResponseGenerator[Any], stage: str
) -> AsyncIterator[tuple[bool, DeferredResult[Any]]]:
    """References to the items of a streaming call of a stage, each with whether it is the last, the result.

    The called method yields that truth value before each item, so that the caller, which must not fetch the
    items, knows what they are.
    """
    references = await response._to_object_ref_gen()
    async for marker in references:
        is_result: bool = await marker
        yield is_result, DeferredResult(await anext(references), stage)


def loss_of(error: BaseException, stage: str) -> StageLost | None:
    """The loss of a stage that `error` says, with the stage's name; None if it says something else.

    A stage passes on the error of the one before it, whose name then stays.
    """
    lost = as_service_error(error)
    if not isinstance(lost, StageLost):
        return None
    return lost if lost.stage else StageLost(stage=stage)
