"""The servers that more than one file of tests asks: each is started once, at the first test that
wants it, and ends with the last test."""

import contextlib
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))

from s3_servers import NAMES, S3RVER, starting  # noqa: E402


@pytest.fixture(scope='session')
def s3_server(tmp_path_factory, pytestconfig):
    """A function: from a name to the server of S3's protocol with that name, which runs."""
    started = {}
    with contextlib.ExitStack() as stack:
        def server(name):
            if name not in started:
                started[name] = stack.enter_context(starting(
                    name, tmp_path_factory.mktemp(name),
                    lambda: pytestconfig.cache.mkdir(f's3rver-{S3RVER}')))
            return started[name]

        yield server


@pytest.fixture(scope='session', params=NAMES)
def s3(request, s3_server):
    """Each of them."""
    return s3_server(request.param)
