"""Whole-run tools: verify, prune, export."""
