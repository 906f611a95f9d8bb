"""What a machine makes of a model, by this engine and by diffusers side by side: `safelight bench`."""
