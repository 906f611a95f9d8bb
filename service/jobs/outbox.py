"""The outbox: messages to receivers, written in the transaction that ends a job, sent until they arrive."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex

from sqlalchemy import and_, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from safelight.service.database.tables import webhook_messages as messages

# Before each attempt but the first, times 0.8 to 1.2: some 19 hours in all.
PAUSES = (5.0, 30.0, 300.0, 1800.0, 7200.0, 18_000.0, 43_200.0)
SENDING_SECONDS = 60.0  # that a sender has a message for itself
BATCH = 8  # messages that a gateway sends at the same time


@dataclass(frozen=True, slots=True)
class Message:
    """A message, at its attempt `attempts`, counted from 1."""

    id: str
    url: str
    payload: str
    attempts: int


async def put_message(
    connection: AsyncConnection, url: str, event_type: str, object_id: str, now: float
) -> None:
    """Put the message that a job or batch has ended into the outbox, within the transaction of `connection`.

    Args:
        connection: In a transaction that writes.
        url: The receiver.
        event_type: Such as `image_job.done`.
        object_id: Of the job or batch.
        now: The current Unix time.
    """
    message_id = f"msg_{token_hex(12)}"
    event = {
        "id": message_id,
        "object": "event",
        "type": event_type,
        "created_at": int(now),
        "data": {"id": object_id},
    }
    row = {
        "id": message_id,
        "url": url,
        "payload": json.dumps(event),
        "created": now,
        "due": now,
        "attempts": 0,
    }
    await connection.execute(insert(messages).values(row))


async def take_messages(connection: AsyncConnection, now: float) -> list[Message]:
    """Messages that are to be sent now, which no other sender gets for `SENDING_SECONDS`."""
    is_due = and_(messages.c.ended.is_(None), messages.c.due <= now)
    ids = select(messages.c.id).where(is_due).order_by(messages.c.due).limit(BATCH)
    query = (
        update(messages)
        .where(messages.c.id.in_(ids.with_for_update(skip_locked=True)))
        .values(due=now + SENDING_SECONDS, attempts=messages.c.attempts + 1)
        .returning(messages.c.id, messages.c.url, messages.c.payload, messages.c.attempts)
    )
    return [Message(*row) for row in await connection.execute(query)]


async def has_messages(connection: AsyncConnection, now: float) -> bool:
    """Whether there are messages to be sent now."""
    query = select(messages.c.id).where(messages.c.ended.is_(None), messages.c.due <= now).limit(1)
    return await connection.scalar(query) is not None


async def settle_message(
    connection: AsyncConnection,
    message: Message,
    error: str | None,
    now: float,
    is_final: bool = False,
    jitter: Callable[[float, float], float] = random.uniform,
) -> None:
    """Write what became of an attempt.

    Args:
        connection: In a transaction that writes.
        message: The message.
        error: Why it did not arrive; None if it did.
        now: The current Unix time.
        is_final: Whether the receiver wants no more of it.
        jitter: A random number between two.
    """
    is_over = error is None or is_final or message.attempts > len(PAUSES)
    values = (
        {"ended": now, "error": error}
        if is_over
        else {"due": now + PAUSES[message.attempts - 1] * jitter(0.8, 1.2), "error": error}
    )
    # a sender that took too long has lost the message to another one
    is_mine = and_(messages.c.id == message.id, messages.c.attempts == message.attempts)
    await connection.execute(update(messages).where(is_mine).values(**values))
