"""Stand-ins for Serve's handles and responses that know the methods of the real deployment classes."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


class FakeCall:
    """Stands in for Serve's `DeploymentResponse`; keeps the call's arguments by name."""

    def __init__(self, method: str, arguments: dict[str, Any], answer: Any = None) -> None:
        self.method = method
        self.arguments = arguments
        self.cancelled = False
        self.timeouts: list[float | None] = []
        self.answer: Future[Any] = Future()
        if answer is not None:
            self.answer.set_result(answer)

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self.answer).__await__()

    def result(self, timeout_s: float | None = None) -> Any:
        self.timeouts.append(timeout_s)
        return self.answer.result(timeout_s)

    async def _to_object_ref(self) -> "FakeCall":
        return self

    def cancel(self) -> None:
        self.cancelled = True


class FakeStream(FakeCall):
    """Stands in for Serve's `DeploymentResponseGenerator`, whose items a test gives."""

    def __init__(self, method: str, arguments: dict[str, Any]) -> None:
        super().__init__(method, arguments)
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    def give(self, *items: Any) -> None:
        """Give the reader items; an exception is raised, and None ends the stream."""
        for item in items:
            self._items.put_nowait(item)

    async def _to_object_ref_gen(self) -> "AsyncIterator[FakeReference]":
        return self._references()

    async def _references(self) -> "AsyncIterator[FakeReference]":
        while (item := await self._items.get()) is not None:
            yield FakeReference(item)

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> Any:
        if (item := await self._items.get()) is None:
            raise StopAsyncIteration
        return await FakeReference(item)


@dataclass(frozen=True)
class FakeReference:
    """Stands in for Ray's `ObjectRef`."""

    item: Any

    def __await__(self) -> Generator[Any, None, Any]:
        return self._value().__await__()

    async def _value(self) -> Any:
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


class FakeHandle:
    """Stands in for a `DeploymentHandle` of `deployment`; keeps its calls.

    A method that the class does not have, and arguments that it does not take, are errors, as on Serve.
    """

    def __init__(self, deployment: type, answer: Any = None) -> None:
        self.calls: list[FakeCall] = []
        self._deployment = deployment
        self._answer = answer

    def options(self, stream: bool) -> "FakeHandle":
        """The handle, whose calls of generators are streams, as Serve demands it."""
        assert stream
        return self

    def __getattr__(self, method: str) -> "FakeMethod":
        return FakeMethod(method, inspect.signature(getattr(self._deployment, method)), self._call)

    def _call(self, method: str, arguments: dict[str, Any]) -> FakeCall:
        is_stream = inspect.isasyncgenfunction(getattr(self._deployment, method))
        call = FakeStream(method, arguments) if is_stream else FakeCall(method, arguments, self._answer)
        self.calls.append(call)
        return self.calls[-1]


def make_handle(deployment: type, answer: Any = None) -> Any:
    """A `FakeHandle`, which type checkers do not take for a `DeploymentHandle`."""
    return FakeHandle(deployment, answer)


class FakeMethod:
    """A method of a handle."""

    def __init__(
        self, name: str, signature: inspect.Signature, call: Callable[[str, dict[str, Any]], FakeCall]
    ) -> None:
        self._name, self._signature, self._call = name, signature, call

    def remote(self, *args: Any, **kwargs: Any) -> FakeCall:
        arguments = self._signature.bind(None, *args, **kwargs).arguments
        return self._call(self._name, {name: value for name, value in arguments.items() if name != "self"})
