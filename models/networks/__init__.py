"""The denoising networks in their plain form: the oracles of `packed`."""
