"""Where samples come from: one layout, one file; all give a :class:`i2am.flows.datasets.common.SampleSet`."""
