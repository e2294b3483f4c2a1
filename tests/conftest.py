import tempfile

import pytest
import torch

from tests.jobs import Jobs


@pytest.fixture(autouse=True, scope="session")
def one_thread_for_all():
    """Run on one thread: on matrices this small, more only wait for one another."""
    torch.set_num_threads(1)


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


def pytest_runtest_setup(item):
    """Skip what is marked gpu where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
