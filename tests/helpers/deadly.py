"""Run a module that dies: `-m tests.helpers.deadly FUNCTION CALL -m MODULE ARGUMENT ...`.

FUNCTION is "module:class.function"; its CALL-th call is the last thing that the process does.
"""

import runpy
import sys

from tests.helpers.jobs import deadly_at

if __name__ == "__main__":
    path, call, _, module, *arguments = sys.argv[1:]
    deadly_at(path, int(call))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
