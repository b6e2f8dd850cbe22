"""Fixtures that several files of tests use."""

import gc
import socket

import pytest

from tests.harness import Nameserver, WebServer, Website, serving


@pytest.fixture
def only_full_collections():
    """So that what is collected in the end is collected in the order of its creation."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope='module')
def running_nameserver():
    server = Nameserver()
    yield server
    server.stop()


@pytest.fixture
def nameserver(running_nameserver):
    running_nameserver.answers = {'name.test': ['127.0.0.1']}
    running_nameserver.ipv6_answers = {}
    running_nameserver.ipv6_queries.clear()
    running_nameserver.ttl = 300
    running_nameserver.gates = {}
    running_nameserver.queries.clear()
    return running_nameserver


@pytest.fixture
def silent_address():
    """Of a nameserver that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.1', 0))
        yield sock.getsockname()


@pytest.fixture
def plain_website():
    with WebServer(('127.0.0.1', 0), Website) as server, serving(server):
        yield f'http://127.0.0.1:{server.server_port}/page'
