"""The composition root of the pipeline: builds the running parts of a model, one module for each.

Each part loads only its own weights, and its module imports only its own library: open_clip and diffusers
take several times as long to import as torch, and a denoiser needs neither. Two threads must not import them
at the same time.
"""
