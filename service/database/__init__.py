"""The service's database: a SQLite file, or PostgreSQL. Its tables are in `tables`; SQLAlchemy loads late."""
