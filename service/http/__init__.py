"""The HTTP gateway: routes, schemas, validation and translation."""
