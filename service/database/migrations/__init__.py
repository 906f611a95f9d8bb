"""Migrations of the database, in the form of alembic."""
