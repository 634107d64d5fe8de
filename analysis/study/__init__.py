"""A whole study: maps, tables, figures and report of a run."""
