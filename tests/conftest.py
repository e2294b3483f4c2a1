import gc
import os
import tempfile
from importlib import import_module

import pytest

from tests.helpers.jobs import Jobs

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: on matrices this small, more threads only wait

# What `pruning` imports at module level. jaxtyping's import hook keeps the bytecode of whatever an
# instrumented module imports under another name, so third-party code would be compiled once more.
THIRD_PARTY = (
    "torch",
    "transformers.modeling_utils",
    "transformers.trainer",
    "datasets",
    "torchmetrics",
    "lm_eval",
    "requests",
)


@pytest.fixture(autouse=True, scope="session")
def own_locks(tmp_path_factory):
    """Keep away from the locks of jobs outside of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield


@pytest.fixture(scope="module")
def jobs(place):
    """Serve jobs of launch.py to a module, within its `place`."""
    server = Jobs(place.environment)
    yield server
    server.close()


def pytest_collectstart():
    """Import third-party code first; with pytest-xdist, in its workers alone.

    No garbage is looked for meanwhile, and none later in what was imported.
    """
    gc.disable()
    for name in THIRD_PARTY:
        import_module(name)


def pytest_collection_finish():
    """Look for garbage from now on, in what the tests make."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """Mark what uses launch.py as a job, and what is neither job, slow nor gpu as a unit test."""
    for item in items:
        if {"jobs", "place"} & set(item.fixturenames):
            item.add_marker("job")
        if not any(item.get_closest_marker(name) for name in ("job", "slow", "gpu")):
            item.add_marker("unit")


def pytest_runtest_setup(item):
    """Skip what is marked gpu where there is none."""
    if item.get_closest_marker("gpu") and not import_module("torch").cuda.is_available():
        pytest.skip("no CUDA device")
