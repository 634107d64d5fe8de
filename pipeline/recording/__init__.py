"""One generation on its way into the store: guidance, geometry, selection, provenance."""
