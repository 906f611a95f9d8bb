"""Every table of the service. A change here needs a migration in `migrations/versions`; a test compares both.

Times are Unix times in seconds. Documents are JSON; only the code that writes them reads them.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

# So that a constraint has the same name in every database, and a migration can change it.
NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMES)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("weight", Double, nullable=False),
    Column("max_priority", Integer, nullable=False),
    Column("requests_per_minute", Integer),
    Column("images_per_day", Integer),
    Column("device_seconds_per_day", Double),
    Column("spend_per_month", Double),
    Column("models", Text, nullable=False),  # one a line; empty for all
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
    Column("last_used", Double),
    # Rises with every change but that of `last_used`, so that readers ask for what has changed.
    Column("revision", BigInteger, nullable=False, index=True),
)
# A name can be used again when its key has been revoked.
Index(
    "uq_api_keys_name_in_use",
    api_keys.c.name,
    unique=True,
    sqlite_where=api_keys.c.revoked.is_(None),
    postgresql_where=api_keys.c.revoked.is_(None),
)

# A key has one secret, and two while it is rotated.
api_key_secrets = Table(
    "api_key_secrets",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 in hexadecimal digits
    Column("prefix", String(16), nullable=False),
    Column("key_id", String(32), ForeignKey("api_keys.id"), nullable=False, index=True),
    Column("created", Double, nullable=False),
    Column("ends", Double),
)

# What a key has used in a day or a month, for its quotas.
key_usage = Table(
    "key_usage",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("quota", String(32), primary_key=True),
    Column("period", String(10), primary_key=True),  # 2026-11-30, or 2026-11
    Column("amount", BigInteger, nullable=False),
)

# The accounts of each service that uses this database. One ledger at a time writes those of a service.
usage_ledgers = Table(
    "usage_ledgers",
    metadata,
    Column("service", String(64), primary_key=True),
    Column("epoch", BigInteger, nullable=False),  # rises with every ledger that takes over
    Column("since", Double, nullable=False),  # when the accounts began
    Column("saved", Double, nullable=False),
    Column("dropped", BigInteger, nullable=False),
)

# Requests by key and model: in a minute (Unix time / 60), and since the accounts began (minute 0).
usage_minutes = Table(
    "usage_minutes",
    metadata,
    Column("service", String(64), primary_key=True),
    Column("minute", BigInteger, primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("key_name", Text, nullable=False),
    Column("done", BigInteger, nullable=False),  # requests by outcome
    Column("refused", BigInteger, nullable=False),
    Column("aborted", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("device_seconds", Double, nullable=False),
    Column("store_seconds", Double, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("codes", Text, nullable=False),  # a document: of the requests that were not done
    Column("stages", Text, nullable=False),  # a document: amounts by stage
)
Index("ix_usage_minutes_minute", usage_minutes.c.minute)

# Seconds of the replicas of a stage, as above.
usage_stage_minutes = Table(
    "usage_stage_minutes",
    metadata,
    Column("service", String(64), primary_key=True),
    Column("minute", BigInteger, primary_key=True),
    Column("stage", String(16), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("alive", Double, nullable=False),
    Column("busy", Double, nullable=False),
    Column("starting", Double, nullable=False),
    Column("warm_up", Double, nullable=False),
    Column("lost", Double, nullable=False),
    Column("ticks", Text, nullable=False),  # a document
)
Index("ix_usage_stage_minutes_minute", usage_stage_minutes.c.minute)

# What the metrics count of each model.
usage_series = Table(
    "usage_series",
    metadata,
    Column("service", String(64), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

# Single requests; without an outcome, one that has not ended, with its first usage in `ended`.
usage_records = Table(
    "usage_records",
    metadata,
    Column("service", String(64), primary_key=True),
    Column("record_id", String(32), primary_key=True),
    Column("ended", Double, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("outcome", String(16)),
    Column("code", Text, nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("key_name", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("num_images", BigInteger, nullable=False),  # requested
    Column("images", BigInteger, nullable=False),  # sent
    Column("seconds", Double, nullable=False),
    Column("user_hash", String(64), nullable=False),
    Column("device_seconds", Double, nullable=False),
    Column("store_seconds", Double, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("usage", Text, nullable=False),  # a document: amounts by stage, or events
)
Index("ix_usage_records_ended", usage_records.c.ended)

# Who reports to the ledger, so that no report counts twice.
usage_sources = Table(
    "usage_sources",
    metadata,
    Column("service", String(64), primary_key=True),
    Column("source", String(64), primary_key=True),
    Column("next_number", BigInteger, nullable=False),
    Column("received", Double, nullable=False),
    Column("is_silent", Integer, nullable=False),
    Column("document", Text, nullable=False),  # of a stage's replica: its totals; empty for a gateway
)
Index("ix_usage_sources_received", usage_sources.c.received)
# Requests that are drawn whether or not somebody waits: jobs, and requests with an Idempotency-Key.
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("caller", String(32), nullable=False),  # id of the API key; empty without keys
    Column("caller_name", String(64), nullable=False),
    Column("user", String(16), nullable=False),  # hash of the person whose request it is
    Column("request_id", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False),  # a higher one is drawn first
    Column("model", Text, nullable=False),
    Column("work", Text, nullable=False),  # what is drawn, as JSON
    Column("num_images", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("steps_done", Integer, nullable=False),
    Column("idempotency_key", String(255)),
    Column("idempotency_until", Double),
    Column("digest", String(64), nullable=False),  # SHA-256 of what the client sent
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),  # not drawn before
    Column("expires", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("attempt", Integer, nullable=False),  # rises with every claim: the fence
    Column("failures", Integer, nullable=False),
    Column("lease_owner", String(32)),
    Column("lease_until", Double),
    Column("webhook", Text),
    Column("result", Text),  # as JSON: the names of the images, and the answer without them
    Column("error", Text),  # as JSON
    # Of a line of a batch: the batch, the number of the line, from 1, and its `custom_id`.
    Column("batch", String(40)),
    Column("line", Integer),
    Column("custom_id", Text),
    Index("uq_jobs_batch_line", "batch", "line", unique=True),
    Index("ix_jobs_batch_state_line", "batch", "state", "line"),
    Index("ix_jobs_state_due", "state", "due"),
    Index("ix_jobs_caller_created", "caller", "created"),
    Index("uq_jobs_caller_idempotency_key", "caller", "idempotency_key", unique=True),
)

# The files of an edit, until its job has ended.
job_uploads = Table(
    "job_uploads",
    metadata,
    Column("job_id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("image", LargeBinary, nullable=False),
    Column("mask", LargeBinary),
    Column("num_bytes", BigInteger, nullable=False),
)

# The outbox: what receivers are told of jobs that have ended, written with their end.
webhook_messages = Table(
    "webhook_messages",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("url", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),  # also how long a sender has it for itself
    Column("attempts", Integer, nullable=False),
    Column("ended", Double, index=True),  # delivered, or given up
    Column("error", Text),  # of the latest attempt
)

# Files that callers have uploaded, and the output of batches, which is made when it is read.
files = Table(
    "files",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("caller", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False, index=True),
    Column("content", LargeBinary),
    Column("batch", String(40)),  # whose output it is
    Index("ix_files_caller_created", "caller", "created"),
)

# Batches of requests, whose lines are jobs.
batches = Table(
    "batches",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("caller", String(32), nullable=False),
    Column("caller_name", String(64), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file", String(40), nullable=False),
    Column("status", String(16), nullable=False),
    Column("outcome", String(16), nullable=False),  # the status that it ends with, as far as is known
    Column("metadata", Text),  # as JSON
    Column("base_url", Text, nullable=False),  # what links to its images begin with
    Column("webhook", Text),
    Column("output_seconds", Double, nullable=False),  # how long its output is kept
    Column("max_images", Integer, nullable=False),  # of a line
    Column("errors", Text),  # as JSON
    Column("output_file", String(40)),
    Column("error_file", String(40)),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("kept_until", Double, nullable=False),
    Column("started", Double),  # when its lines were read
    Column("cancelling", Double),
    Column("finalizing", Double),
    Column("ended", Double),
    Column("lease_owner", String(32)),  # of the gateway that reads its lines, or makes its output
    Column("lease_until", Double),
    Index("ix_batches_status", "status"),
    Index("ix_batches_caller_created", "caller", "created"),
)
