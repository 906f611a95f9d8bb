"""API keys: who may call the service, for what and how much; in the database, or in a mounted file."""
