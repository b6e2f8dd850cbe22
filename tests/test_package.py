"""The quickstart, what importing the package imports, and what it says of itself."""

import inspect
import os
import pydoc
import re
import socket
import subprocess
import sys

import lowhaio
from lowhaio import Pool
from tests.harness import ROOT


def run_quickstart(*args):
    return subprocess.run(
        [sys.executable, ROOT / 'examples' / 'quickstart.py', *args], capture_output=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=60, check=False)


def test_quickstart_streams_both_ways_over_one_connection():
    ended = run_quickstart()
    printed = ended.stdout.decode()
    assert ended.returncode == 0, ended.stderr
    assert re.search(r'Upload +201, 67108864 bytes, from port (\d+)\n'
                     r'Download +200, 67108864 bytes, to port \1\n', printed)
    assert "the second request reused the first one's" in printed
    assert b'Upload: 100%' in ended.stderr
    assert b'Download: 100%' in ended.stderr


def test_quickstart_fetches_a_url_to_standard_output(plain_website):
    ended = run_quickstart(plain_website)
    assert (ended.returncode, ended.stdout) == (0, b'<p>Hello</p>')


def test_quickstart_fetches_a_url_to_a_file(plain_website, tmp_path):
    ended = run_quickstart(plain_website, '--output', tmp_path / 'page')
    assert (ended.returncode, ended.stdout) == (0, b'')
    assert (tmp_path / 'page').read_bytes() == b'<p>Hello</p>'


def test_quickstart_says_what_failed():
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(('127.0.0.1', 0))
        ended = run_quickstart(f'http://127.0.0.1:{sock.getsockname()[1]}/')
    assert ended.returncode == 1
    assert b'HttpConnectionError: GET http://127.0.0.1:' in ended.stderr
    assert b'Connection refused' in ended.stderr


def test_importing_imports_nothing_big():
    ended = subprocess.run(
        [sys.executable, '-c', 'import asyncio, sys; before = set(sys.modules); import lowhaio; '
         'print(*sorted(set(sys.modules) - before))'],
        capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True)
    imported = set(ended.stdout.decode().split())
    # The resolver is imported at the first host name.
    assert 'lowhaio' in imported
    assert not imported & {'aiodnsresolver', 'urllib.parse', 'http.client', 'email'}


def test_all_that_is_public_has_a_documentation_and_can_be_imported():
    source = (ROOT / 'lowhaio.py').read_text()
    for name in lowhaio.__all__:
        documented = inspect.getdoc(getattr(lowhaio, name))
        assert documented or re.search(rf'^{name} = .+\n"""', source, re.MULTILINE), name


def test_the_version_is_that_of_the_distribution():
    ended = subprocess.run(
        [sys.executable, 'setup.py', '--version'], capture_output=True, cwd=ROOT, check=True)
    assert ended.stdout.decode().split()[-1] == lowhaio.__version__


def test_help_shows_the_arguments_of_what_a_pool_returns_and_what_they_do():
    for function, kind, words in zip(
            Pool(), (lowhaio.Request, lowhaio.Close), ('body_kwargs', 'idle'), strict=True):
        text = pydoc.render_doc(function, renderer=pydoc.plaintext)
        assert inspect.getdoc(kind.__call__).splitlines()[0] in text
        assert words in text
        assert list(inspect.signature(function).parameters) == list(
            inspect.signature(kind.__call__).parameters)[1:]
