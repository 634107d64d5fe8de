"""IMACS, tables and intervals."""
