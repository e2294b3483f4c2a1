"""Say in one line which file or directory cannot be written or read, and what to do."""

import errno
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
REMEDIES = {
    **dict.fromkeys(FULL, "free some space there"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "remove what is in its place"),
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path that is no loop of links",
    errno.EIO: "look at the disk, and at the space on it",
    errno.ENOENT: "put it back",
}
GIB = 2**30


def number(error: BaseException) -> int | None:
    """Return the number of the system's error; safetensors and torch only write about it."""
    if isinstance(error, shutil.Error):  # of a whole tree, with a line for each file
        said = re.search(r"\[Errno (\d+)\]", str(error))
        return int(said[1]) if said else None
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save
        return errno.EIO
    said = re.search(r"\(os error (\d+)\)$", str(error))
    return int(said[1]) if said else None


def of_files(error: BaseException) -> bool:
    """Tell errors of files, which users can mend, from others of the system and of ours."""
    named = isinstance(error, OSError) and error.filename is not None
    return number(error) in FULL or (named and number(error) in REMEDIES)


def explained(error: BaseException, path: Path | None = None) -> str:
    """Return what an error of files says, in one line; of `path` where it names none itself."""
    code = number(error)
    assert code is not None
    if isinstance(error, OSError) and error.filename is not None:
        path = Path(os.fsdecode(error.filename))
    free = ""
    if path is not None and code in (*FULL, errno.EIO):
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        free = f", where {shutil.disk_usage(there).free / GIB:.2f} GiB are free"
    return f"{path or 'the disk'}: {os.strerror(code)}{free}: {REMEDIES[code]}"


@contextmanager
def writing(path: Path, option: str) -> Generator[None, None, None]:
    """Turn a failure to write in the directory `path` into a ValueError; `option` moves it."""
    try:
        yield
    except Exception as error:
        if number(error) not in REMEDIES or number(error) == errno.ENOENT:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            file, root = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
            if root not in (file, *file.parents) and file not in root.parents:
                raise  # not there
        raise ValueError(f"{explained(error, path)}, or give {option} another place") from error
