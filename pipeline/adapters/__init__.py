"""Adapters: one family of models, one file; found by pipeline, name, or entry point ``i2am.adapters``."""
