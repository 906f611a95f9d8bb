"""What generated images are compared with: a gallery of clean images and a CLIP scorer."""
