"""Where samples come from: one layout, one file; all give a :class:`flows.datasets.common.SampleSet`."""
