"""A model in this process, for Python programs: the service's three stages without a server."""

from __future__ import annotations

import asyncio
import builtins
import io
import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypedDict, Unpack

from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.pipeline.errors import InvalidParams
from safelight.service.errors import ServiceError
from safelight.service.http.edits.params import make_edits, make_upload, with_source_size
from safelight.service.http.schemas import Usage
from safelight.service.http.translation import make_output, make_params, make_usage
from safelight.service.http.validation import parse_request
from safelight.service.inprocess import InProcessPipeline
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.runtime.output_files import CannotWrite, write_file
from safelight.service.served_model import find_served_model
from safelight.service.settings import read_settings

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Source: TypeAlias = "str | Path | builtins.bytes | PilImage"
SUFFIXES = {"png": (".png",), "webp": (".webp",), "jpeg": (".jpg", ".jpeg")}


class SafelightError(Exception):
    """A model that cannot be loaded, an invalid option, or an image that cannot be drawn.

    The message is one sentence; `param` is the option at fault, or None.
    """

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class RequestOptions(TypedDict, total=False):
    """The options of `Pipeline.generate`: the fields of the HTTP API, with the same limits and defaults."""

    negative_prompt: str
    n: int
    size: str
    seed: int
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]
    num_inference_steps: int
    guidance_scale: float
    solver: str
    timestep_spacing: str
    eta: float
    guidance_interval: tuple[float, float]
    guidance_stride: int
    guidance_rescale: float
    output_format: Literal["png", "webp", "jpeg"]
    output_compression: int


@dataclass(frozen=True)
class GeneratedImage:
    """One image, as the bytes of its file.

    Attributes:
        bytes: The file's content.
        format: `png`, `webp` or `jpeg`.
        width: In pixels.
        height: In pixels.
        seed: The request's seed.
    """

    bytes: builtins.bytes = field(repr=False)
    format: str
    width: int
    height: int
    seed: int

    @cached_property
    def pil(self) -> PilImage:
        """The decoded image, a `PIL.Image.Image`."""
        from PIL import Image

        return Image.open(io.BytesIO(self.bytes))

    def save(self, path: str | Path) -> None:
        """Write the file.

        Raises `SafelightError` if it cannot be written, and if the suffix of `path` belongs to another
        format; the option `output_format` selects the format.
        """
        if Path(path).suffix.lower() not in SUFFIXES[self.format]:
            allowed = " or ".join(SUFFIXES[self.format])
            raise SafelightError(
                f"the image is a {self.format} file, to be saved as {allowed}; got {Path(path).name!r}"
            )
        try:
            write_file(Path(path), self.bytes)
        except CannotWrite as error:
            raise SafelightError(str(error)) from error


class GeneratedImages(list[GeneratedImage]):
    """The images of one request, in order; `usage` is what the HTTP API reports as the request's usage."""

    def __init__(self, images: Iterable[GeneratedImage], usage: Usage):
        super().__init__(images)
        self.usage = usage


@dataclass(frozen=True)
class EditSource:
    """What `Pipeline.edit` is given beside a prompt and options."""

    image: Source
    mask: Source | None
    strength: float | None

    def files(self) -> tuple[builtins.bytes, builtins.bytes | None]:
        """The bytes of both files. Raises `SafelightError`."""
        return _file_of(self.image, "image"), None if self.mask is None else _file_of(self.mask, "mask")


class Pipeline:
    """A loaded model that draws images.

    It is a context manager; `close` frees the model. Several threads may use it at once: their images share
    batches. `generate` blocks: in a coroutine, use `await asyncio.to_thread(pipeline.generate, ...)`.
    """

    def __init__(self, model: str | Path | None = None, **settings: object):
        """Load a model; returns when it is ready.

        Args:
            model: The name of an embedded model, a checkpoint folder, or the id of a model in the Hugging
                Face cache. By default the setting `model`: emoji-128 unless the environment sets another.
            **settings: Settings of the service by name, such as `variant="fp16"` or `denoise_threads=4`
                (docs/settings.md).

        Raises:
            SafelightError: The model cannot be loaded, or a setting is invalid.
        """
        with _as_safelight_errors():
            values = read_settings(settings | {"model": None if model is None else str(model)})
            self._model = find_served_model(values)
            self._stages = InProcessPipeline(self._model, values)
            try:
                self._stages.wait()
            except BaseException:
                self._stages.close()
                raise
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="safelight", daemon=True)
        self._thread.start()

    def generate(self, prompt: str, **options: Unpack[RequestOptions]) -> GeneratedImages:
        """Draw the images of one request; the same request gives the same bytes as the service does.

        Args:
            prompt: What the images show.
            **options: The fields of `RequestOptions`, such as `seed`, `n`, `size` and `num_inference_steps`.

        Raises:
            SafelightError: An option is invalid, or an image cannot be drawn.
        """
        return self._draw(prompt, options, None)

    def edit(
        self,
        prompt: str,
        image: Source,
        mask: Source | None = None,
        strength: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> GeneratedImages:
        """Draw images from an image; the same request gives the same bytes as the service does.

        Args:
            prompt: What the images show.
            image: The image to start from: a file's path or its bytes, or a `PIL.Image.Image`.
            mask: Likewise, of the same size: only what is transparent in it is redrawn, or what is white in a
                mask without transparency. Without a mask the whole image is redrawn.
            strength: The share of the steps that are taken, 0 to 1; by default 0.6, with a mask 1.
            **options: As in `generate`. Without a `size`, the images have the model's size that is nearest to
                the image's.

        Raises:
            SafelightError: An option is invalid, a file cannot be edited, or an image cannot be drawn.
        """
        return self._draw(prompt, options, EditSource(image, mask, strength))

    def _draw(self, prompt: str, options: RequestOptions, edit: EditSource | None) -> GeneratedImages:
        started = time.perf_counter()
        if self._loop.is_closed():
            raise SafelightError("the pipeline is closed")
        with _as_safelight_errors():
            request = parse_request(json.dumps({**options, "prompt": prompt}).encode())
            params, output = make_params(request, self._model), make_output(request)
            upload = None
            if edit is not None:
                params = make_edits(params, self._model, edit.strength, edit.mask is not None, is_strict=True)
                upload = make_upload(*edit.files(), request, self._model, params[0])
            work = self._stages.generate_all(params, output, upload)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            try:
                results = future.result()
            except CancelledError:
                raise SafelightError("the pipeline was closed while the image was drawn") from None
            finally:
                future.cancel()  # takes the images out of the batch if the wait was interrupted
        params = with_source_size(params, results)
        usage = make_usage(results, params, self._model, time.perf_counter() - started)
        images = [
            GeneratedImage(result.image, output.format, image.width, image.height, image.seed)
            for result, image in zip(results, params, strict=True)
        ]
        return GeneratedImages(images, usage)

    def close(self) -> None:
        """Free the model. Calls of `generate` in progress fail. Closing twice is allowed."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_other_tasks(), self._loop).result()
        self._stages.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


async def _cancel_other_tasks() -> None:
    await cancel_and_wait(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))


def _file_of(source: Source, name: str) -> bytes:
    """The bytes of a file. Raises `SafelightError` that names `name`."""
    if isinstance(source, bytes):
        return source
    try:
        if isinstance(source, (str, Path)):
            return Path(source).read_bytes()
        buffer = io.BytesIO()
        source.save(buffer, "PNG")
        return buffer.getvalue()
    except (OSError, AttributeError) as error:
        raise SafelightError(f"{name} cannot be read: {error}", name) from error


@contextmanager
def _as_safelight_errors() -> Iterator[None]:
    """Turn the errors that a user can correct into `SafelightError`; any other error is a bug and passes."""
    try:
        yield
    except (ServiceError, InvalidParams, UnknownModel, ValueError) as error:
        raise SafelightError(str(error), getattr(error, "param", None)) from error
