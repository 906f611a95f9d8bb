"""Answers images as links: stores them, charges the request for it, and signs."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from safelight.service.errors import InvalidRequest, StoreFailed
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.reading.model_names import PREFIX
from safelight.service.http.schemas import ImageRequest
from safelight.service.image_store.store import ImageStore
from safelight.service.usage.records import RequestRecorder, StoreUsage

logger = logging.getLogger(__name__)

FILES_PATH = "/v1/images/files"
# OpenAI's models that answer links unless the request says otherwise; some of their clients read only those.
LINKED_MODELS = "dall-e-"


@dataclass(frozen=True)
class LinkPlan:
    """Whether the images of a request are stored, and answered as what.

    Attributes:
        store: Where; None if no links are asked for.
        base_url: What the links begin with.
        is_required: Whether links were asked for by name: a store that fails is then an error, and the images
            themselves are not in the answer.
    """

    store: ImageStore | None
    base_url: str = ""
    is_required: bool = False


async def plan_links(request: ImageRequest, asked_model: object, gateway: Gateway, base_url: str) -> LinkPlan:
    """How the images of a request are answered; decided before they are drawn.

    Args:
        request: The request.
        asked_model: The model's name as the client wrote it.
        gateway: What answers it.
        base_url: What links begin with.

    Raises:
        InvalidRequest: Links are asked for and turned off.
        StoreFailed: The store cannot be opened.
    """
    is_required = request.response_format == "url"
    name = str(asked_model).strip().lower().removeprefix(PREFIX)
    is_expected = request.response_format is None and name.startswith(LINKED_MODELS)
    if gateway.image_store is None:
        if is_required:
            raise InvalidRequest(
                "response_format: links to images are turned off here; allowed: b64_json.", "response_format"
            )
        return LinkPlan(None)
    if not (is_required or is_expected):
        return LinkPlan(None)
    try:
        await gateway.image_store.signer()
    except StoreFailed:
        if is_required:
            raise
        logger.warning("images are answered without links", exc_info=True)
        return LinkPlan(None)
    return LinkPlan(gateway.image_store, base_url, is_required)


async def store_images(
    plan: LinkPlan, images: Sequence[bytes], format: str, record: RequestRecorder
) -> list[str] | None:
    """Store the images as planned and return their links; None if there are none.

    Args:
        plan: Of this request.
        images: The files of one request.
        format: Their format.
        record: Is charged the time, also if the store fails, and the bytes.

    Raises:
        StoreFailed: Links were asked for by name and an image cannot be stored; then none is.
    """
    if plan.store is None:
        return None
    started = time.perf_counter()
    num_bytes = 0
    try:
        names = await plan.store.save(images, format)
        signer = await plan.store.signer()
        num_bytes = sum(map(len, images))
    except StoreFailed:
        if plan.is_required:
            raise
        logger.warning("images are answered without links", exc_info=True)
        return None
    finally:
        record.store += StoreUsage(time.perf_counter() - started, num_bytes)
    return [f"{plan.base_url}{FILES_PATH}/{name}?{signer.query(str(name), name.expires)}" for name in names]
