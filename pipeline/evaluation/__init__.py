"""How well a model does what prompts say: `prompts` to draw, `renderer` that draws them, `judge` that compares with clean images."""
