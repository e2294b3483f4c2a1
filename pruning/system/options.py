"""What the dataclasses of all config groups share: one check of values, from YAML or Python."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class Options:
    """Fields take what a YAML may hold: an enum's name for the enum, an integer for a float."""

    where: ClassVar[str] = ""  # config path, for errors

    def __post_init__(self) -> None:
        for name, value in converted(self).items():
            setattr(self, name, value)


def converted(options: Options) -> dict[str, Any]:
    """Return plain values as their fields have them; ValueError where one is of another type.

    Dataclasses within are left out: they were checked when they were made.
    """
    plain = [f.name for f in fields(options) if not _nested(getattr(options, f.name))]
    config = OmegaConf.structured(type(options))
    for name in plain:
        value = getattr(options, name)
        try:
            config[name] = value
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            path = f"{options.where}.{name}" if options.where else name
            raise ValueError(f"{path}={value!r} cannot be used: {reason}") from error
    return {name: _plain(config, name) for name in plain}


def _nested(value: Any) -> bool:
    """Say whether a value is a dataclass, or holds some."""
    if isinstance(value, dict):
        return any(map(_nested, value.values()))
    return hasattr(value, "__dataclass_fields__")


def _plain(config: DictConfig, name: str) -> Any:
    """Return a value of a config as Python has it; what is missing stays so."""
    if OmegaConf.is_missing(config, name):
        return "???"
    value = config[name]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
