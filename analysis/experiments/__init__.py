"""The paper's experiments as numbers: frames in, frames out."""
