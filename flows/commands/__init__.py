"""The commands of ``i2am``: one module each, light to import; what is heavy loads when the command runs."""
