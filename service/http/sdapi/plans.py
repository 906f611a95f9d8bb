"""What is drawn for a request of `/sdapi/v1`."""

from collections.abc import Mapping
from dataclasses import replace

from safelight.service.errors import InvalidRequest
from safelight.service.http.edits.fields import read_strength
from safelight.service.http.edits.params import make_edits, make_upload
from safelight.service.http.edits.uploads import split_fields
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import ImagePlan, plan_images
from safelight.service.http.reading.request import read_request
from safelight.service.http.sdapi.fields import generation_fields, with_seeds

STRENGTH = 0.75  # AUTOMATIC1111's default
# Masks, which AUTOMATIC1111 reads in another way. To draw the whole image instead would surprise.
MASKS = ("mask", "mask_image")


def plan_txt2img(body: Mapping[str, object], gateway: Gateway) -> ImagePlan:
    """The images of a text. Raises `InvalidRequest` or `InvalidParams`."""
    plan = plan_images(read_request(generation_fields(body, gateway.names), gateway.names, is_strict=False))
    return replace(plan, params=with_seeds(plan.params))


def plan_img2img(body: Mapping[str, object], gateway: Gateway) -> ImagePlan:
    """The images of a text and the first of `init_images`. Raises `InvalidRequest` or `InvalidParams`."""
    for name in MASKS:
        if body.get(name) not in (None, "", False):
            raise InvalidRequest(f"{name}: masks are read by /v1/images/edits only.", name)
    images = body.get("init_images")
    if not isinstance(images, list) or not images:
        raise InvalidRequest("init_images must be a list with an image in base64.", "init_images")
    source = split_fields([("image", images[0])]).image
    plan = plan_txt2img(body, gateway)
    strength = read_strength("denoising_strength", body.get("denoising_strength"))
    params = make_edits(plan.params, plan.model, STRENGTH if strength is None else strength, False)
    return replace(plan, params=params, upload=make_upload(source, None, plan.request, plan.model, params[0]))
