"""The denoising networks as the engine runs them: rows of any size packed end to end in one batch."""
