"""`safelight bench`: this engine and diffusers measured side by side on the same weights and requests."""
