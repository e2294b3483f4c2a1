"""What Hydra and OmegaConf say of a config, in one line that names the remedy."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from itertools import takewhile

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pruning.composition import CONF, SCHEMAS
from pruning.reference import comments

NO_FIELD = (ConfigAttributeError, ConfigKeyError)
MERGING = re.compile(r"Error merging override (.+)")
ALIKE = 0.05  # of likenesses to a wrong word: then the one that begins like it was meant
NO_LIST = "is not a ListConfig"
SEVERAL = re.compile(r"Ambiguous value for argument '(.+)'")
NO_VALUE = re.compile(r"[Mm]issing mandatory value.*?full_key: (\S+)", re.S)


def explained_config(error: BaseException) -> str | None:
    """Return what to do about an error of a config; None for any other, and for what says it."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.partition("/")  # a name may be a path
        if group not in SCHEMAS:
            group, _, name = error.missing_cfg_file.rpartition("/")  # Hydra's own, in two levels
        return f"{group}={name} is not an option: {choices(name, error.options)}"
    if isinstance(error, ConfigCompositionException) and isinstance(cause, NO_FIELD):
        return _no_field(str(cause.full_key), cause.object_type)
    if isinstance(error, ConfigCompositionException):
        first, *_ = str(error).splitlines()
        if merging := MERGING.match(first):
            said = str(cause).splitlines()[0]
            if NO_LIST in said:
                return f"{merging[1]} is not a list: give FIELD=[VALUE,VALUE], also for one value"
            return f"{merging[1]}: {said}"
        if several := SEVERAL.match(first):
            return f"{several[1]}: for a job for each value give -m; a list is FIELD=[VALUE,VALUE]"
    if missing := NO_VALUE.search(str(error)):
        return _no_value(missing[1])
    return None


@contextmanager
def as_value_error() -> Iterator[None]:
    """Turn what Hydra says of an option into a ValueError, without its traceback."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explained_config(error) or str(error)) from None


def choices(name: str, known: Iterable[str]) -> str:
    """Say which names there are, first the one that `name` may stand for."""
    known = sorted(known)
    near = get_close_matches(name, known)  # the nearest first
    likeness = {one: SequenceMatcher(None, one, name).ratio() for one in near}
    best = [one for one in near if likeness[one] > likeness[near[0]] - ALIKE]
    nearest = max(best, key=lambda one: _common(name, one), default=None)
    guess = f"did you mean {nearest}? " if nearest else ""
    return f"{guess}choose one of {', '.join(known)}"


def _common(one: str, other: str) -> int:
    """Return with how many letters both begin."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _no_field(path: str, kind: type | None) -> str | None:
    """Say which fields there are beside a wrong one, and which option has it."""
    if not is_dataclass(kind):
        return None
    group, _, name = path.rpartition(".")
    known = [field.name for field in fields(kind) if not (group and field.name == "name")]
    others = [
        f"{group}={option}"
        for schema, other in SCHEMAS.get(group, {}).items()
        if name in {field.name for field in fields(other)}
        for option in _options(group, schema)
    ]
    has = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it" if others else ""
    choose = f": {choices(name, known)}" if known else ", which has none"
    return f"{path} is not an option{_of(group, kind)}{choose}{has}"


def _options(group: str, schema: str) -> list[str]:
    """Return the options that begin with a schema."""
    begins = f"/schema/{group}/{schema}@"
    paths = sorted((CONF / group).glob("*.yaml"))
    return [path.stem for path in paths if begins in path.read_text(encoding="utf-8")]


def _of(group: str, kind: type) -> str:
    """Name the option of a group that a dataclass belongs to."""
    names = [option for option, other in SCHEMAS.get(group, {}).items() if other is kind]
    return f" of {group}={names[0]}" if len(names) == 1 and len(SCHEMAS[group]) > 1 else ""


def _no_value(path: str) -> str:
    """Say what a field that needs a value holds."""
    group, _, name = path.rpartition(".")
    said = next(
        (
            f" ({comments(kind)[name]})"
            for kind in SCHEMAS.get(group, {}).values()
            if any(field.name == name and field.default == "???" for field in fields(kind))
        ),
        "",
    )
    return f"{path} needs a value{said}: give {path}=VALUE"
