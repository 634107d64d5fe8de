"""Where attention is read: projections, attention calls, latent tiles, and copies to the host."""
