"""Makes the layers and the harness of their tests importable, without installing them."""

import gc
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent

sys.path[:0] = [str(HERE), *(str(module.parent) for module in HERE.glob('*/lowhaio_*.py'))]
pytest.register_assert_rewrite('harness')


@pytest.fixture(scope='session', autouse=True)
def nothing_before():
    """What there is before the tests is no garbage of theirs: it is not looked at each time."""
    gc.collect()
    gc.freeze()
