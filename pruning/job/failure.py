"""What went wrong, in one line: for users, without a traceback where they can mend it."""

import re
from errno import ENOENT

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException as OmegaConfError

from pruning.config_errors import explained_config
from pruning.renamed import today
from pruning.system.writing import explained, of_files

USER_ERRORS = (ValueError, HydraException, OmegaConfError)
# OmegaConf's words for an override below a part that is null, and for one that is such a part
PART_IS_NULL = re.compile(r"Unexpected type|'NoneType' object has no attribute .*full_key", re.S)


def in_one_line(error: BaseException) -> str:
    """Return what an error and its causes say, in one line; of config errors, where help is."""
    field = re.search(r"full_key: (\S+)", str(error))  # as OmegaConf says it
    if PART_IS_NULL.match(str(error)):
        return (
            f"an override names a field of a part that is null{f', {field[1]}' if field else ''}, "
            "as task.epochs=1 does without a task: choose that part too, such as task=sst2, or "
            "leave the override out"
        )
    if _is_of_getcwd(error):
        return "the working directory is gone: change to one that is there"
    if of_files(error):
        return explained(error)
    if not isinstance(error, USER_ERRORS):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None and isinstance(cause, USER_ERRORS):
        text = " ".join(str(cause).split())
        if text and not any(text in other for other in said):
            said.append(text)
        cause = cause.__cause__ if not isinstance(cause, ValueError) else None
    if isinstance(error, OverrideParseException):
        given = error.override or ""
        quoted = "quote a value that holds = , : or brackets, as in 'model.wheel=\"a==1.0\"'"
        if given and "=" not in given:
            said = [f"{given} has no value: give {given}=VALUE, without spaces"]
        else:
            said = [f"{given}: {said[0]}: {quoted}"]
    field = re.search(r"full_key: (\S+)", " ".join(said))
    if field and (now := today(field[1])):
        return f"{field[1]}: this option is now {now}"
    if remedy := explained_config(error):
        said = [remedy]
    if isinstance(error, (HydraException, OmegaConfError)):
        said.append("`python launch.py --help` lists groups, options and fields")
    return "; ".join(said) or type(error).__name__


def is_for_users(error: BaseException) -> bool:
    """Say whether users can mend what went wrong, so that a traceback tells them nothing."""
    told = isinstance(error, USER_ERRORS) and str(error).strip()
    known = told or of_files(error) or _is_of_getcwd(error)
    return bool(known or PART_IS_NULL.match(str(error)))


def _is_of_getcwd(error: BaseException) -> bool:
    """Tell the one error of the system about a file that it does not name."""
    return isinstance(error, OSError) and error.errno == ENOENT and error.filename is None
