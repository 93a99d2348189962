"""``python -m kdpipe`` is the command ``kdpipe``."""

import sys

from kdpipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
