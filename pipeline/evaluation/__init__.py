"""How well a model follows prompts: reading prompts, rendering them, and rating the images."""
