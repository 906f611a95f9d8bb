"""How the embedded default `emoji-128` was made: data, text tower, autoencoder, DiT, evaluation."""
