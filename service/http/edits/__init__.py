"""Edits of uploaded images: reading the request, and the route."""
