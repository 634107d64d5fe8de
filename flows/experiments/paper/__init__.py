"""``i2am paper``: the experiments on the embedded model, and their page."""
