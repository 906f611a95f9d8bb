"""Model families: one module for each, and the registry that lists them. No torch is imported here."""
