"""Defaults are in the dataclasses alone, each field has a comment, and the page says both."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from pruning.composition import CONF, SCHEMAS
from pruning.experiment import Experiment
from pruning.reference import _closure, comments, reference

KINDS = _closure(
    dict.fromkeys([Experiment, *(kind for group in SCHEMAS.values() for kind in group.values())])
)
OPTIONS = sorted(
    path.relative_to(CONF).with_name(path.stem)
    for group in SCHEMAS
    for path in (CONF / group).glob("*.yaml")
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_comment(kind):
    said = comments(kind)
    assert [field.name for field in fields(kind) if not said[field.name]] == []


def test_the_page_is_as_the_dataclasses_are():
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text() == reference(), "stale: run `make docs`"


def parents(option: Path) -> DictConfig:
    """Merge what an option starts from, schemas and other options, without what it says itself."""
    merged = OmegaConf.create()
    for entry in yaml.safe_load((CONF / f"{option}.yaml").read_text())["defaults"]:
        if not isinstance(entry, str) or entry == "_self_":
            continue
        name = entry.removesuffix("@_here_")
        if name.startswith("/schema/"):
            _, _, group, kind = name.split("/")
            base = OmegaConf.structured(SCHEMAS[group][kind])
        else:
            base = whole(Path(name[1:]) if name.startswith("/") else option.parent / name)
        merged = OmegaConf.merge(merged, base) if len(merged) else base
    assert isinstance(merged, DictConfig)
    return merged


def whole(option: Path) -> DictConfig:
    """Merge an option with what it starts from."""
    merged = OmegaConf.merge(parents(option), OmegaConf.create(own(option)))
    assert isinstance(merged, DictConfig)
    return merged


def own(option: Path) -> dict:
    """Return what an option says itself."""
    said = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    return {key: value for key, value in said.items() if key != "defaults"}


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_an_option_says_only_what_differs(option):
    said, base, after = own(option), parents(option), whole(option)
    assert said.pop("name") == option.name
    for key in said:
        reference_to_another = OmegaConf.is_interpolation(after, key)
        assert reference_to_another or OmegaConf.is_missing(base, key) or base[key] != after[key]
