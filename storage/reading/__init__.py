"""Reading runs: open, `Run`, several runs as one, chunks back into arrays."""
