"""Every table and plot in the documents that shows figures, from `docs/data` and from the code."""
