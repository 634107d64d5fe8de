"""Numbers of bytes, as people read them."""


def human_bytes(count: float) -> str:
    """Format a number of bytes with a decimal prefix: 1536 is ``1.54 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
