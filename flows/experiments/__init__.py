"""The paper's experiments on runs and data sets."""
