"""Where a run lives: local disk, object store, any fsspec file system."""
