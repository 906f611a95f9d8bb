"""The operator's routes for API keys."""
