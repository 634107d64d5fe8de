"""Adapters: one family of models, one file; found by pipeline, by name, or by entry point ``i2am.adapters``."""
