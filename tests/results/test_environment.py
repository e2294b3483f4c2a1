"""What sets environments apart."""

from pruning.results.environment import differences


def test_differences():
    same = {"cpu": "A", "gpu": None, "packages": {"torch": "2"}}
    assert differences([same, dict(same)]) == {}
    assert differences([same, {"cpu": "A"}]) == {}  # older, and does not tell
    other = {"cpu": "A", "gpu": "H", "packages": {"torch": "3"}}
    assert differences([same, other, {"cpu": "A"}]) == {
        "gpu": ["None", "H", None],
        "packages.torch": ["2", "3", None],
    }
