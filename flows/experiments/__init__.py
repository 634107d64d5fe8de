"""The work behind the commands of the experiments."""
