"""A capture over several processes and GPUs."""
