"""Which models can be served, with the limits and defaults of their requests; imports no torch."""
