"""The answer to a request for images, in OpenAI's shape."""

import base64
import time
from collections.abc import Iterator, Sequence

from safelight.service.http.generation import Generation
from safelight.service.http.reading.quality import quality_of
from safelight.service.http.schemas import Image, ImageResponse


def make_response(generation: Generation) -> ImageResponse:
    """The response that holds the images, or links to them, or both."""
    first = generation.params[0]
    return ImageResponse(
        created=int(time.time()),
        data=list(_images(generation)),
        output_format=generation.output.format,
        quality=quality_of(first.num_steps, generation.model.num_steps),
        size=f"{first.width}x{first.height}",
        usage=generation.usage,
    )


def response_json(response: ImageResponse) -> str:
    """The response as JSON, without the form of its images that was not asked for."""
    absent = {field for field in Image.model_fields if getattr(response.data[0], field) is None}
    return response.model_dump_json(exclude={"data": {"__all__": absent}})


def _images(generation: Generation) -> Iterator[Image]:
    links: Sequence[str | None] = generation.links or [None] * len(generation.results)
    for result, link in zip(generation.results, links, strict=True):
        file = base64.b64encode(result.image).decode("ascii") if generation.has_files else None
        yield Image(b64_json=file, url=link)
