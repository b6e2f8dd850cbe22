"""The quickstart, and what importing the package imports."""

import os
import re
import socket
import subprocess
import sys

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
