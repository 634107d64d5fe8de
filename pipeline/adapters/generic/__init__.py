"""An adapter that is described, in Python or in YAML, instead of written."""
