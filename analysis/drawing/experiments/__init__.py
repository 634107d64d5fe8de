"""Pictures of the paper's experiments."""
