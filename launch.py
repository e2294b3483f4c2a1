"""Prune a language model to a speedup: `python launch.py model=... speedup=1.5`."""

import sys

from pruning.job.launch import shell

if __name__ == "__main__":
    sys.exit(shell())
