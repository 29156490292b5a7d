"""`python -m baleen` is the `baleen` command."""

import sys

from baleen.cli import main

if __name__ == "__main__":
    sys.exit(main())
