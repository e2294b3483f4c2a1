"""Values of config fields: taken as they stand where that is what OmegaConf would make of them."""

from dataclasses import dataclass, field, fields

import pytest

from pruning.composition import SCHEMAS
from pruning.system import options
from pruning.system.options import Options, converted

KINDS = {kind for group in SCHEMAS.values() for kind in group.values()}


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_values_as_they_stand_are_what_omegaconf_makes_of_them(kind, monkeypatch):
    given = kind(**{f.name: "???" for f in fields(kind) if f.default is f.default_factory})
    quick = converted(given)
    monkeypatch.setattr(options, "_is_exact", lambda value, hint: False)
    slow = converted(given)
    assert quick == slow
    assert list(map(type, quick.values())) == list(map(type, slow.values()))


@dataclass
class Sample(Options):
    where = "sample"
    share: float = 0.5
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] | None = None
    text: str = ""


def test_what_does_not_stand_as_its_field_is_converted_or_refused():
    assert type(Sample(share=1).share) is float
    weights = Sample(weights={"a": 2}).weights
    assert weights is not None
    assert type(weights["a"]) is float
    assert Sample(text="${.share}").text == "0.5"
    with pytest.raises(ValueError, match=r"^sample\.share='much' cannot be used"):
        Sample(share="much")
    with pytest.raises(ValueError, match=r"^sample\.names=\[\{\}\] cannot be used"):
        Sample(names=[{}])


def test_a_list_is_not_shared_with_who_gave_it():
    names = ["a"]
    sample = Sample(names=names)
    names.append("b")
    assert sample.names == ["a"]
