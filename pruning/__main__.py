"""`python -m pruning COMMAND ...`."""

import sys

from pruning.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
