"""Makes the layers and the harness of their tests importable, without installing them."""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent

sys.path[:0] = [str(HERE), *(str(module.parent) for module in HERE.glob('*/lowhaio_*.py'))]
pytest.register_assert_rewrite('harness')
