"""Model families: one module a family, and the registry that lists them. Nothing here imports torch on import."""
