"""Have llama.cpp store a GGUF file in fewer bits, in a process of its own: this file, by its path.

Nothing of this package may be imported here: the process need not have it.
"""

import ctypes
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

SAID = 300  # characters of an engine's last words


def quantise_(path: Path, file_type: int, threads: int) -> None:
    """Replace a file by one of another type, whole or not at all; ValueError where that fails.

    llama.cpp chooses the type of every matrix, and another where a row is not made of its blocks.
    """
    smaller = path.with_name(f"{path.name}.smaller")
    command = [sys.executable, "-P", __file__, str(path), str(smaller)]
    quiet = os.environ | {"GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(
            [*command, str(file_type), str(threads)], capture_output=True, env=quiet
        )
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-SAID:]
            raise ValueError(
                f"runtime=llama_cpp: llama.cpp cannot quantise this model ({said}): give another "
                "runtime.precision"
            )
        os.replace(smaller, path)
    finally:
        smaller.unlink(missing_ok=True)


def main(source: str, target: str, file_type: str, threads: str) -> int:
    """Write the smaller file; return 0 if that went well."""
    api: Any = import_module("llama_cpp")
    options = api.llama_model_quantize_default_params()
    options.ftype, options.nthread = int(file_type), int(threads)
    return api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
