"""Small systems with the module names, class names and call patterns of public research code."""
