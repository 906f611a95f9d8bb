"""One module a migration, by number."""
