"""The paper's experiments, from numbers to tables: one claim, one file."""
