"""Holds every route to its rule, before anything of the request but its head is read."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.service.errors import InvalidMetricsKey, LimitReached
from safelight.service.http.caller import CALLER, Caller, make_recorder
from safelight.service.http.credentials import check_operator, read_secret
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.route_rules import NoRule, Rule, rule_of, takes_basic
from safelight.service.http.same_site import check_site
from safelight.service.http.trusted_hosts import TrustedHosts
from safelight.service.runtime.addresses import is_loopback
from safelight.service.setting_types import names_in
from safelight.service.usage.records import RequestOutcome

if TYPE_CHECKING:
    from safelight.service.keys.api_key import ApiKey


def protect_routes(app: FastAPI, gateway: Gateway) -> None:
    """Put the rule of every route in front of it. Raises `NoRule`."""
    guard = Guard(gateway)
    for route in app.routes:
        if not isinstance(route, Route | Mount):
            raise NoRule(f"{route}: of an unknown kind")
        methods = set(getattr(route, "methods", None) or {"GET"}) - {"HEAD"}  # which is answered as GET
        route.app = GuardedRoute(route.app, route.path, rule_of(route.path, methods), guard)


class GuardedRoute:
    """A route's app, behind its rule."""

    def __init__(self, app: ASGIApp, path: str, rule: Rule, guard: Guard):
        self.app = app
        self.rule = rule
        self._takes_basic = takes_basic(path)
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, caller = Request(scope), Caller()
        scope["state"][CALLER] = caller  # also for the answer's headers: see `Envelope`
        await self._guard.check(self.rule, request, caller, self._takes_basic)
        try:
            await self.app(scope, receive, send)
        finally:
            await self._guard.settle(caller)


class Guard:
    """Applies rules."""

    def __init__(self, gateway: Gateway):
        settings = gateway.settings
        self._gateway = gateway
        self._hosts = TrustedHosts(settings)
        self._checks_host = gateway.access is None and is_loopback(settings.host)
        self._origins = (*names_in(settings.cors_origins), *_origin(settings.public_url))

    async def check(self, rule: Rule, request: Request, caller: Caller, takes_basic: bool) -> None:
        """Raise `ServiceError` for a request that `rule` refuses.

        Args:
            rule: Of the route.
            request: Of which only the head is read.
            caller: Gets the key, and the limits that were counted.
            takes_basic: Whether the route takes HTTP basic authentication.
        """
        if rule in (Rule.PUBLIC, Rule.SIGNED):
            return
        if self._checks_host:
            self._hosts.check_host(request)
        if rule is Rule.ADMIN:
            self._check_operator(request, is_metrics=False)
        elif rule is Rule.METRICS:
            self._check_operator(request, is_metrics=True)
        else:
            await self._check_caller(rule, request, caller, takes_basic)

    async def settle(self, caller: Caller) -> None:
        """Count what the request has really used."""
        access, reservation = self._gateway.access, caller.reservation
        if access is None or reservation is None:
            return
        caller.reservation = None
        record = None if caller.recorder is None else caller.recorder.record
        if record is None:  # it is still being drawn, although nobody waits for it: charged as forecast
            await asyncio.shield(access.settle(reservation, (), math.inf, has_ended_early=True))
            return
        is_aborted = record.outcome is RequestOutcome.ABORTED
        await asyncio.shield(
            access.settle(reservation, record.image_usages, record.seconds, has_ended_early=is_aborted)
        )

    async def _check_caller(self, rule: Rule, request: Request, caller: Caller, takes_basic: bool) -> None:
        access = self._gateway.access
        if access is None:
            check_site(request, self._origins)
            return
        if takes_basic:  # a browser adds a password that it knows to requests of any page
            check_site(request, self._origins)
        caller.key = await access.find(read_secret(request, takes_basic))
        request.state.request_log |= {"key": caller.key.id, "key_name": caller.key.spec.name}
        if rule is Rule.DRAWING:
            try:
                await access.count_request(caller.key, caller.statuses)
            except LimitReached as error:
                self._record_refusal(request, caller.key, error)
                raise

    def _record_refusal(self, request: Request, key: ApiKey, error: LimitReached) -> None:
        """Write the usage record of a request that is refused before its route begins one."""
        recorder = make_recorder(request.state.request_id, self._gateway.model.id, key)
        self._gateway.record(recorder.close(error))

    def _check_operator(self, request: Request, is_metrics: bool) -> None:
        """Raise `Unauthorized` unless the request has the operator's key; without one, any has it."""
        settings = self._gateway.settings
        check_site(request, self._origins)
        if is_metrics:
            if self._is_closed(settings.metrics_key):
                check_operator(request, settings.metrics_key, settings.admin_key, error=InvalidMetricsKey)
        elif self._is_closed(settings.admin_key):
            check_operator(request, settings.admin_key)

    def _is_closed(self, key: Any) -> bool:
        """Whether a route of the operator's asks for its key: if there is one, or callers need one."""
        return bool(key.get_secret_value()) or self._gateway.access is not None


def _origin(url: str) -> tuple[str, ...]:
    """The origin of a URL; none of an empty one."""
    return ("/".join(url.split("/")[:3]),) if url else ()
