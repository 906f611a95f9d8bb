"""The composition root of the pipeline: builds the running parts of a model, one module for each.

Each part loads only its own weights and imports only what it needs: the libraries of a text encoder take
longer to import than torch, and a denoiser and a decoder need none of them. Two threads must not import them
at the same time.
"""
