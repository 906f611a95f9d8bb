"""Run by alembic: migrates the connection that `service.database.migrate` gives it, in its transaction."""

from alembic import context

from safelight.service.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
)
context.run_migrations()
