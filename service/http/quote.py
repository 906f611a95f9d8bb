"""`POST /v1/images/quote`: what a request for images would be told, without drawing them."""

from fastapi import FastAPI
from starlette.requests import Request

from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import open_exchange, plan_images, request_context, wish_of
from safelight.service.http.image_requests import read_image_request
from safelight.service.http.openapi import GENERATION_ERRORS, image_request_body
from safelight.service.http.request_body import read_json_object
from safelight.service.http.schemas import QuoteResponse


def add_quote_route(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/v1/images/quote",
        responses=GENERATION_ERRORS,
        openapi_extra=gateway.openapi_extras.add(
            lambda: image_request_body(gateway.names, gateway.settings.strict)
        ),
        summary="When the images of a request would be there, without drawing them",
    )
    async def quote(request: Request) -> QuoteResponse:
        with open_exchange(request, gateway, "", "quote") as exchange:
            exchange.record.is_deferred = True  # nothing is drawn
            limit, seconds = gateway.settings.max_body_bytes, gateway.settings.body_seconds
            fields = await read_json_object(request, limit, seconds)
            plan = plan_images(read_image_request(request, gateway, fields, exchange.record))
            promises, wish = gateway.dispatcher.promises, wish_of(exchange, plan)
            context = request_context(exchange, plan)
            answer = await gateway.dispatcher.quote(plan.params[0], context)
            outside = promises.seconds_outside(plan.model.id)
            promised = answer.promised_seconds
            return QuoteResponse(
                admitted=answer.is_admitted,
                forecast_seconds=answer.forecast_seconds + outside.median,
                promised_seconds=None if promised is None else max(wish.seconds or 0.0, promised),
                retry_seconds=answer.retry_seconds,
                backlog_seconds=answer.backlog_seconds,
                model=plan.model.id,
            )
