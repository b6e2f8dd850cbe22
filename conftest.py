"""Makes the module, the layers and the harness of the tests importable without installing any."""

import gc
import inspect
import itertools
import os
import pathlib
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parent

sys.path[:0] = [str(ROOT), *(str(layer.parent) for layer in ROOT.glob('layers/*/setup.py'))]
pytest.register_assert_rewrite('tests.harness')

import lowhaio  # noqa: E402
from tests.harness import authority, run_rows  # noqa: E402


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, because now and then one waits for time to pass. Each more
    would have to collect all tests, too, which takes seconds."""
    return min((os.cpu_count() or 1) + 1, 16)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is collected stays: the collector would look at it again and again, for nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """The rows of a test, on all its loops, are one item of the many that processes are handed.

    What pytest and xdist do for an item takes about as long as a short row. A row that fails is
    named in a note. With `-n 0` each row is an item, with a name of its own.
    """
    if hasattr(config, 'workerinput'):
        items[:] = [item for function, rows in itertools.groupby(items, rows_of)
                    for item in together(list(rows), function)]


def rows_of(item):
    """What is the same of items that are rows of one test, if it needs no other fixtures."""
    if not (isinstance(item, pytest.Function) and hasattr(item, 'callspec')):
        return item
    # Without those of fixtures, which make something of them.
    params = {name for mark in item.iter_markers('parametrize') if not mark.kwargs.get('indirect')
              for name in as_names(mark.args[0])}
    others = {*item.fixturenames} - params - FOR_ALL
    arguments = {*inspect.signature(item.function).parameters} - params
    is_row = (others <= OF_A_ROW | NEEDED_BY_THEM and arguments <= OF_A_ROW
              and {mark.name for mark in item.iter_markers()} == {'parametrize'})
    return (item.parent, item.originalname) if is_row else item


def as_names(argnames):
    return re.split(', *', argnames) if isinstance(argnames, str) else argnames


FOR_ALL = {'random_turn', 'nothing_before'}
# Those that `run_rows` makes for each row.
OF_A_ROW = {'monkeypatch', 'tmp_path'}
NEEDED_BY_THEM = {'request', 'tmp_path_factory'}


def together(items, function):
    if len(items) == 1:
        return items
    parent, name = function
    rows = [(item.callspec.id, item.obj, item.callspec.params, OF_A_ROW & {*item.fixturenames})
            for item in items]
    return [pytest.Function.from_parent(
        parent, name=name, callobj=lambda tmp_path_factory: run_rows(rows, tmp_path_factory))]


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
