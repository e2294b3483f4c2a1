"""`launch.py` with one more method: `python examples/custom_method/launch.py method=largest`."""

import sys

from hydra.core.config_store import ConfigStore
from largest import Largest

from pruning.job.launch import shell

if __name__ == "__main__":
    ConfigStore.instance().store(group="method", name="largest", node=Largest)
    sys.exit(shell())
