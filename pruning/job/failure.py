"""What went wrong, in one line: for users, without a traceback where they can mend it."""

import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException as OmegaConfError

from pruning.renamed import today
from pruning.system.writing import explained, of_files

USER_ERRORS = (ValueError, HydraException, OmegaConfError)
PART_IS_NULL = "Unexpected type"  # OmegaConf's word for an override below a part that is null


def in_one_line(error: BaseException) -> str:
    """Return what an error and its causes say, in one line; of config errors, where help is."""
    if isinstance(error, AssertionError) and str(error).startswith(PART_IS_NULL):
        return (
            "an override names a field of a part that is null, as task.epochs=1 does without a "
            "task: choose that part too, such as task=sst2, or leave the override out"
        )
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
    field = re.search(r"full_key: (\S+)", " ".join(said))  # as OmegaConf says it
    if field and (now := today(field[1])):
        return f"{field[1]}: this option is now {now}"
    if isinstance(error, (HydraException, OmegaConfError)):
        said.append("`python launch.py --help` lists groups, options and fields")
    return "; ".join(said)


def is_for_users(error: BaseException) -> bool:
    """Say whether users can mend what went wrong, so that a traceback tells them nothing."""
    known = isinstance(error, USER_ERRORS) or of_files(error)
    return known or PART_IS_NULL in str(error)
