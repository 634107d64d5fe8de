"""Attribution maps of the five levels, in both directions and protocols."""
