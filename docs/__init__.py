"""The documents' tables and plots: `python -m docs.figures` draws all of them from data."""
