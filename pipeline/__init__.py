"""Capture: taps and adapters, the capture context, jobs and the embedded model."""
