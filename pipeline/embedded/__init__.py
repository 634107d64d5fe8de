"""The embedded model: a small reference-conditioned inpainting pipeline with weights, and its scenes."""
