"""Making runs: create, sink, write queue, staging, lease."""
