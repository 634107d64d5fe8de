"""Aggregations that come with the project, one a file; each is an entry point of ``i2am.aggregations``."""
