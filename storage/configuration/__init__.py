"""Configuration files in YAML: read, checked against a model, and refused in one line."""
