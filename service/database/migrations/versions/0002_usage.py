"""The accounts: sums by minute, key and model, single requests, and what the ledger needs to go on."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _make_table(
        "usage_ledgers",
        ["service"],
        sa.Column("service", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("saved", sa.Double(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
    )
    _make_minutes()
    _make_table(
        "usage_series",
        ["service", "model"],
        sa.Column("service", sa.String(64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
    )
    _make_records()
    _make_table(
        "usage_sources",
        ["service", "source"],
        sa.Column("service", sa.String(64), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.Double(), nullable=False),
        sa.Column("is_silent", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
    )
    op.create_index("ix_usage_sources_received", "usage_sources", ["received"])


def _make_minutes() -> None:
    _make_table(
        "usage_minutes",
        ["service", "minute", "key_id", "model"],
        sa.Column("service", sa.String(64), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("key_name", sa.Text(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("done", "refused", "aborted", "failed", "images")
        ),
        sa.Column("device_seconds", sa.Double(), nullable=False),
        sa.Column("store_seconds", sa.Double(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("codes", sa.Text(), nullable=False),
        sa.Column("stages", sa.Text(), nullable=False),
    )
    op.create_index("ix_usage_minutes_minute", "usage_minutes", ["minute"])
    _make_table(
        "usage_stage_minutes",
        ["service", "minute", "stage", "model"],
        sa.Column("service", sa.String(64), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        *(
            sa.Column(name, sa.Double(), nullable=False)
            for name in ("alive", "busy", "starting", "warm_up", "lost")
        ),
        sa.Column("ticks", sa.Text(), nullable=False),
    )
    op.create_index("ix_usage_stage_minutes_minute", "usage_stage_minutes", ["minute"])


def _make_records() -> None:
    _make_table(
        "usage_records",
        ["service", "record_id"],
        sa.Column("service", sa.String(64), nullable=False),
        sa.Column("record_id", sa.String(32), nullable=False),
        sa.Column("ended", sa.Double(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("key_name", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("num_images", sa.BigInteger(), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("user_hash", sa.String(64), nullable=False),
        sa.Column("device_seconds", sa.Double(), nullable=False),
        sa.Column("store_seconds", sa.Double(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage", sa.Text(), nullable=False),
    )
    op.create_index("ix_usage_records_ended", "usage_records", ["ended"])


def _make_table(name: str, key: list[str], *columns: sa.Column[Any]) -> None:
    op.create_table(name, *columns, sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{name}")))
