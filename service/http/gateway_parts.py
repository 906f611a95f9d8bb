"""The parts that all routes of a gateway share."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.batches.queue import BatchQueue
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.http.openapi import OpenApiExtras
from safelight.service.http.progress import ProgressEstimator
from safelight.service.http.readiness import WarmUp
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.image_store.store import ImageStore
from safelight.service.jobs.queue import JobQueue
from safelight.service.model_backends import ModelBackends
from safelight.service.moderation.deny_list import DenyList
from safelight.service.setting_types import NO_STORE, names_in
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from safelight.service.telemetry.tracing import Tracing
from safelight.service.usage.client import LedgerClient
from safelight.service.usage.records import UsageRecord
from safelight.service.usage.reporter import Outbox, UsageReporter

if TYPE_CHECKING:
    from safelight.service.access import KeyAccess

DELIVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Gateway:
    """The parts that the routes share."""

    backends: ModelBackends
    settings: Settings
    dispatcher: RequestDispatcher
    warm_up: WarmUp
    metrics: Metrics
    ledger: LedgerClient
    outbox: Outbox
    reporter: UsageReporter
    tracing: Tracing
    image_store: ImageStore | None  # None: there are no links
    progress: ProgressEstimator
    openapi_extras: OpenApiExtras
    access: KeyAccess | None  # None: callers need no API key
    jobs: JobQueue | None  # None: there are no jobs
    deny_list: DenyList | None = None  # None: prompts are not filtered
    batches: BatchQueue | None = None  # None: there are no jobs

    @property
    def names(self) -> ModelNames:
        """The names of the models that are served at this moment; for one request, to be read once."""
        model, *others = self.backends.models
        return ModelNames(model, names_in(self.settings.aliases), tuple(others))

    @property
    def model(self) -> ModelInfo:
        """The model that serves requests that name none."""
        return self.backends.models[0]

    def record(self, record: UsageRecord) -> None:
        """Queue the record of a finished request for the ledger."""
        self.outbox.put(record)

    async def deliver_usage(self) -> None:
        """Send the ledger what waits, so that it knows the latest request; it has a second to answer."""
        if self.reporter.is_stuck:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self.reporter.deliver), DELIVERY_SECONDS)


def make_access(settings: Settings) -> KeyAccess | None:
    """API keys as the settings describe; their libraries are imported only where there are any."""
    if not settings.requires_keys:
        return None
    from safelight.service.access import KeyAccess

    return KeyAccess(settings)


def make_deny_list(settings: Settings) -> DenyList | None:
    """The words that the settings deny."""
    return DenyList.read(settings.denied_words_file) if settings.denied_words_file else None


def make_image_store(settings: Settings) -> ImageStore | None:
    """The store that the settings describe."""
    if settings.image_store == NO_STORE:
        return None
    return ImageStore(
        settings.image_store,
        settings.link_key.get_secret_value(),
        settings.link_seconds,
        settings.image_store_bytes,
    )
