"""Files, batches, and jobs that are lines of a batch."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("batch", sa.String(40)))
    op.add_column("jobs", sa.Column("line", sa.Integer()))
    op.add_column("jobs", sa.Column("custom_id", sa.Text()))
    op.create_index("uq_jobs_batch_line", "jobs", ["batch", "line"], unique=True)
    op.create_index("ix_jobs_batch_state_line", "jobs", ["batch", "state", "line"])
    _make_files()
    _make_batches()


def _make_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("caller", sa.String(32), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("content", sa.LargeBinary()),
        sa.Column("batch", sa.String(40)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_caller_created", "files", ["caller", "created"])
    op.create_index(op.f("ix_files_expires"), "files", ["expires"])


def _make_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("caller", sa.String(32), nullable=False),
        sa.Column("caller_name", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file", sa.String(40), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("metadata", sa.Text()),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column("webhook", sa.Text()),
        sa.Column("output_seconds", sa.Double(), nullable=False),
        sa.Column("max_images", sa.Integer(), nullable=False),
        sa.Column("errors", sa.Text()),
        sa.Column("output_file", sa.String(40)),
        sa.Column("error_file", sa.String(40)),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("created", "expires", "kept_until")),
        *(sa.Column(name, sa.Double()) for name in ("started", "cancelling", "finalizing", "ended")),
        sa.Column("lease_owner", sa.String(32)),
        sa.Column("lease_until", sa.Double()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_status", "batches", ["status"])
    op.create_index("ix_batches_caller_created", "batches", ["caller", "created"])
