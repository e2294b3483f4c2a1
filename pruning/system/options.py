"""What the dataclasses of all config groups share: one check of values, from YAML or Python."""

import math
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pruning.system.files import is_dict, is_list


@dataclass
class Options:
    """Fields take what a YAML may hold: an enum's name for the enum, an integer for a float."""

    where: ClassVar[str] = ""  # config path, for errors

    def __post_init__(self) -> None:
        for name, value in converted(self).items():
            setattr(self, name, value)

    def check_range(
        self,
        *names: str,
        least: float | None = None,
        above: float | None = None,
        most: float | None = None,
        below: float | None = None,
    ) -> None:
        """Raise ValueError for a number, alone or in a list, that is out of range or not finite.

        Null, and what is missing yet, pass.
        """
        for name in names:
            value = getattr(self, name)
            for number in _numbers(value):
                broken = [
                    *(["a finite number"] if not math.isfinite(number) else []),
                    *([f"at least {least}"] if least is not None and number < least else []),
                    *([f"above {above}"] if above is not None and number <= above else []),
                    *([f"at most {most}"] if most is not None and number > most else []),
                    *([f"below {below}"] if below is not None and number >= below else []),
                ]
                if broken:
                    raise ValueError(f"{_path(self, name)}={value} must be {broken[0]}")


def converted(options: Options) -> dict[str, Any]:
    """Return plain values as their fields have them; ValueError where one is of another type.

    Dataclasses within are left out: they were checked when they were made.
    """
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    plain = {name: value for name, value in values.items() if not _nested(value)}
    hints = _hints(type(options))
    if all(_is_exact(value, hints[name]) for name, value in plain.items()):
        return deepcopy(plain)
    config = OmegaConf.structured(type(options))
    for name, value in plain.items():
        try:
            config[name] = value
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{_path(options, name)}={value!r} cannot be used: {reason}"
            ) from None  # its traceback is long, and says no more
    return {name: _plain(config, name) for name in plain}


def _numbers(value: Any) -> list[float]:
    """Return a number, or those in a list or dictionary."""
    items = [*value.values()] if is_dict(value) else value if is_list(value) else [value]
    return [item for item in items if isinstance(item, int | float)]


def _path(options: Options, name: str) -> str:
    """Return where a field is in the config."""
    return f"{options.where}.{name}" if options.where else name


_hints = cache(get_type_hints)


def _is_exact(value: Any, hint: Any) -> bool:
    """Say whether a value is one of `hint` as it stands; OmegaConf would take milliseconds."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_exact(value, one) for one in inner)
    if origin is list and is_list(value):
        return all(_is_exact(item, inner[0]) for item in value)
    if origin is dict and is_dict(value):
        pairs = value.items()
        return all(_is_exact(k, inner[0]) and _is_exact(v, inner[1]) for k, v in pairs)
    if isinstance(value, str) and "${" in value:
        return False  # an interpolation
    if hint is Any:
        return True
    return type(value) is (NoneType if hint is None else hint)


def _nested(value: Any) -> bool:
    """Say whether a value is a dataclass, or holds some."""
    if is_dict(value):
        return any(map(_nested, value.values()))
    return hasattr(value, "__dataclass_fields__")


def _plain(config: DictConfig, name: str) -> Any:
    """Return a value of a config as Python has it; what is missing stays so."""
    if OmegaConf.is_missing(config, name):
        return "???"
    value = config[name]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
