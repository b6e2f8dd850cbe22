"""Makes the module, the layers and the harness of the tests importable without installing any."""

import gc
import os
import pathlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parent

sys.path[:0] = [str(ROOT), *(str(module.parent) for module in ROOT.glob('layers/*/lowhaio_*.py'))]
pytest.register_assert_rewrite('tests.harness')

import lowhaio  # noqa: E402
from tests.harness import authority  # noqa: E402


def pytest_xdist_auto_num_workers(config):
    """Two for each core: a good part of the time goes by while a test waits for a socket."""
    return min(2 * (os.cpu_count() or 1), 16)


@pytest.fixture(scope='session', autouse=True)
def random_turn():
    """Hosts begin at their first address, not at one by chance. Yields what decides otherwise."""
    original = lowhaio.random_turn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowhaio, 'random_turn', lambda: 0)
        yield original


@pytest.fixture(scope='session', autouse=True)
def nothing_before():
    """What there is before the tests is no garbage of theirs: it is not looked at each time."""
    authority()  # or each thread would make its own
    # Hypothesis keeps its random numbers for each thread, and warns if they are what the
    # collector does not see: those that it makes at its first test would be kept by a frozen dict.
    settings(max_examples=1, database=None)(given(st.none())(lambda nothing: None))()
    gc.collect()
    gc.freeze()
