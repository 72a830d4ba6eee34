"""`python -m patterncc` is the command `patterncc`."""

import sys

from patterncc.cli import main

if __name__ == "__main__":
    sys.exit(main())
