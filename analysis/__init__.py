"""Analysis of stored runs: marginals, attribution maps, IMACS, tables, figures, report. Loads no model.

The score itself is ``i2am.analysis.scores.imacs.imacs``: a package cannot re-export a function under the name
of the module it lives in.
"""
