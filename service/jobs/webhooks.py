"""Sends the messages of the outbox, signed by Standard Webhooks, each until its receiver has taken it."""

import asyncio
import logging
import math
from collections.abc import Sequence
from datetime import UTC, datetime

import httpx2
from standardwebhooks import Webhook

from safelight.service.jobs.job_table import JobDatabase
from safelight.service.jobs.outbox import Message, has_messages, settle_message, take_messages
from safelight.service.jobs.receivers import BadReceiver, find_address, parse_receiver

logger = logging.getLogger(__name__)

SECONDS = 15.0  # of one attempt, the look-up of the address included
GONE = 410  # a receiver that wants no more messages


class WebhookSender:
    """Sends messages.

    Args:
        database: Has the outbox.
        origins: Of the receivers that are allowed, also by the time of sending.
        secret: Signs the messages, as Standard Webhooks writes it: `whsec_` and base64.
    """

    def __init__(self, database: JobDatabase, origins: Sequence[str], secret: str):
        self._database = database
        self._origins = tuple(origins)
        self._signer = Webhook(secret)

    async def send_due(self) -> int:
        """Send the messages that are due, and return how many there were. Raises `JobsUnavailable`."""
        async with self._database.reading() as connection:
            if not await has_messages(connection, self._database.clock()):
                return 0
        async with self._database.writing() as connection:
            messages = await take_messages(connection, self._database.clock())
        await asyncio.gather(*map(self._send, messages))
        return len(messages)

    async def _send(self, message: Message) -> None:
        """Make one attempt, and write what became of it."""
        status, error = 0, None
        try:
            async with asyncio.timeout(SECONDS):
                status = await self._post(message)
            if not 200 <= status < 300:  # a redirect is none of the addresses that were checked
                error = f"it answered with status {status}"
        except BadReceiver as failure:
            error = f"the receiver {failure}"
        except (httpx2.HTTPError, OSError, TimeoutError) as failure:
            error = str(failure) or type(failure).__name__
        if error is not None:
            fields = {"message": message.id, "attempt": message.attempts, "cause": error}
            logger.warning("a webhook was not delivered", extra={"fields": fields})
        async with self._database.writing() as connection:
            await settle_message(connection, message, error, self._database.clock(), status == GONE)

    async def _post(self, message: Message) -> int:
        """Post the message to the address that was checked, and return the status of the answer."""
        url = parse_receiver(message.url, self._origins)
        address = await find_address(url)
        headers = self._headers(message) | {"host": url.netloc.decode("ascii")}
        # without the environment: a proxy would look up the name itself
        client = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS)
        async with (
            client,
            client.stream(
                "POST",
                url.copy_with(host=address),
                content=message.payload.encode(),
                headers=headers,
                extensions={"sni_hostname": url.host},  # whose certificate it must have
            ) as response,
        ):
            return response.status_code  # and its body is not read

    def _headers(self, message: Message) -> dict[str, str]:
        timestamp = datetime.fromtimestamp(math.floor(self._database.clock()), UTC)
        return {
            "content-type": "application/json",
            "user-agent": "safelight",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(timestamp.timestamp())),
            "webhook-signature": self._signer.sign(message.id, timestamp, message.payload),
        }
