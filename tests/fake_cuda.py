"""CUDA without a GPU: tensors on it have a shape, a dtype and a device, and no values.

Whatever would make the host wait for the GPU is listed, with the line of this project that asked for it, and
an operation on tensors of both devices fails as it would on a GPU.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast
from weakref import WeakSet

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("models", "pipeline", "service")
aten = torch.ops.aten
# The result's shape, or a number for Python, depends on values: the host waits for them.
READS_VALUES = {
    aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.equal, aten._unique2,
    aten.repeat_interleave, aten.allclose,
}  # fmt: skip


class FakeCuda(TorchDispatchMode):
    """Within it, the device `cuda` exists.

    Attributes:
        waits: What made the host wait for the device, one line each.
        uploads: The number of copies from the host.
        downloads: The number of copies to the host.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []
        self.uploads = self.downloads = 0
        self._fakes = FakeTensorMode()
        self._pinned: WeakSet[torch.UntypedStorage] = WeakSet()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        if func.namespace == "prim":  # the device of a tensor
            return func(*args, **kwargs)
        if packet is aten.is_pinned:
            return args[0].untyped_storage() in self._pinned
        if packet in (aten.pin_memory, aten._pin_memory):
            return self._pin(args[0])
        if packet is aten._to_copy:
            return self._copy(func, args[0], kwargs)
        if packet is aten.copy_:
            return self._copy_into(func, *args, **kwargs)
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if not any(map(_is_on_cuda, tensors)) and not _names_cuda(kwargs.get("device")):
            return _run_on_host(func, *args, **kwargs)
        if (result := self._decompose(func, args, kwargs)) is not NotImplemented:
            return result
        if packet in READS_VALUES or (packet is aten.index and _has_mask(args[1])):
            self._note(str(packet))
        if any(not _is_on_cuda(tensor) and tensor.ndim for tensor in tensors):
            raise RuntimeError(f"{func}: tensors of both devices at {_caller()}")
        return self._run(func, args, kwargs)

    def __enter__(self) -> Self:
        self._fakes.__enter__()  # torch does not look for a driver below this mode
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        self._fakes.__exit__(*reason)

    def _decompose(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation that is made of others; in inference mode torch passes it on whole."""
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            return func.decompose(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        args, kwargs = tree_map_only(Tensor, self._as_fake, (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)

    def _as_fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._fakes.from_tensor(tensor)

    def _pin(self, tensor: Tensor) -> Tensor:
        pinned: Tensor = _run_on_host(torch.clone, tensor)
        self._pinned.add(pinned.untyped_storage())
        return pinned

    def _copy(self, func: Any, source: Tensor, options: dict[str, Any]) -> Tensor:
        """`source.to(...)`."""
        device, dtype = options.get("device"), options.get("dtype") or source.dtype
        if not _is_on_cuda(source):
            if not _names_cuda(device):
                result: Tensor = _run_on_host(func, source, **options)
                return result
            self._upload(source, dtype, bool(options.get("non_blocking")))
            return torch.empty_strided(source.shape, source.stride(), dtype=dtype, device="cuda")
        if device is None or _names_cuda(device):
            result = self._run(func, (source,), options)
            return result
        self._download(bool(options.get("non_blocking")))
        return cast(Tensor, _run_on_host(torch.zeros, source.shape, dtype=dtype))

    def _copy_into(self, func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if _is_on_cuda(target) and not _is_on_cuda(source) and source.ndim:
            self._upload(source, target.dtype, non_blocking)
            return target
        if _is_on_cuda(source) and not _is_on_cuda(target):
            self._download(non_blocking)
            return target
        if not _is_on_cuda(target):
            result: Tensor = _run_on_host(func, target, source, non_blocking)
            return result
        result = self._run(func, (target, source, non_blocking), {})
        return result

    def _upload(self, source: Tensor, dtype: torch.dtype, non_blocking: bool) -> None:
        self.uploads += 1
        if not non_blocking or source.untyped_storage() not in self._pinned or dtype != source.dtype:
            self._note(f"a copy of {tuple(source.shape)} from pageable memory")

    def _download(self, non_blocking: bool) -> None:
        self.downloads += 1
        if not non_blocking:
            self._note("a copy to the host")

    def _note(self, what: str) -> None:
        self.waits.append(f"{what} at {_caller()}")


def _run_on_host(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _is_on_cuda(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def _names_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _has_mask(indices: Sequence[Any]) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def _caller() -> str:
    """The innermost line of the product on the stack."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename).resolve()
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PARTS:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "a test"
