"""``python -m i2am``: the command line, without the installed script."""

from __future__ import annotations

import sys

from i2am.flows.cli import main

if __name__ == "__main__":
    sys.exit(main())
