"""Supervised object detectors, the paper's upper rows: they write COCO results files for ``i2am detect``."""
