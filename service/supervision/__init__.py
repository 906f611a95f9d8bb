"""`safelight serve` from outside: starts the service in a process of its own, watches it, and ends it."""
