"""The capture job: pipeline, samples, what fits."""
