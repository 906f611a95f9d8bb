"""From a model to its running parts, one module a part: the composition root of the pipeline.

Each part loads only its own weights, and its module imports only its own library.
open_clip and diffusers take several times as long to import as torch, and a denoiser needs neither.
Nor may two threads import them at the same time.
"""
