"""Answers from stored runs: marginals, maps, scores, tables, pictures, report. Loads no model."""
