"""Stand-ins for Serve's handles and responses that know the methods of the real deployment classes."""

import asyncio
import inspect
from collections.abc import Callable, Generator
from concurrent.futures import Future
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


class FakeHandle:
    """Stands in for a `DeploymentHandle` of `deployment`; keeps its calls.

    A method that the class does not have, and arguments that it does not take, are errors, as on Serve.
    """

    def __init__(self, deployment: type, answer: Any = None) -> None:
        self.calls: list[FakeCall] = []
        self._deployment = deployment
        self._answer = answer

    def __getattr__(self, method: str) -> "FakeMethod":
        return FakeMethod(method, inspect.signature(getattr(self._deployment, method)), self._call)

    def _call(self, method: str, arguments: dict[str, Any]) -> FakeCall:
        self.calls.append(FakeCall(method, arguments, self._answer))
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
