"""Which models can be served and what may be asked of them; no torch where the gateway starts."""
