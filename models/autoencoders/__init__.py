"""The autoencoders between images and latents: networks, their options, loading from a checkpoint folder."""
