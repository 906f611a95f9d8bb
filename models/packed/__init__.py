"""The denoising networks as the engine runs them: rows of any sizes packed end to end."""
