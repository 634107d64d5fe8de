"""Places: directions, selections, regions, resizing, tiled layers."""
