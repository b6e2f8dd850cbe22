"""examples/resumable_copy.py, and the same with httpx2, against the same server."""

import ast
import contextlib
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from tests.harness import PATIENCE, ThreadServer, receive_head, response, value

ROOT = pathlib.Path(__file__).parents[2]
OURS, THEIRS = 'resumable_copy.py', 'with_httpx2/resumable_copy.py'
CONTENT = os.urandom(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ENVIRONMENT = {**os.environ, 'PYTHONWARNINGS': 'error', 'PYTHONPATH': os.pathsep.join(
    map(str, (ROOT, *(path.parent for path in ROOT.glob('layers/*/lowhaio_*.py')))))}


class Site:
    """A script with ranges. The first response stops in the middle, and waits."""

    def __init__(self):
        self.asked = []

    def __call__(self, sock):
        with contextlib.suppress(EOFError, OSError):
            while True:
                head = receive_head(sock)
                self.asked.append((value(head, b'range'), value(head, b'if-range')))
                if head.startswith(b'GET /missing'):
                    sock.sendall(response(404))
                elif self.asked[-1] == (None, None):
                    sock.sendall(response(200, CONTENT, b'etag: "1"')[:-500_000])
                    sock.recv(1)
                else:
                    start = int(re.fullmatch(rb'bytes=(\d+)-', self.asked[-1][0])[1])
                    sock.sendall(response(
                        206, CONTENT[start:], b'etag: "1"',
                        b'content-range: bytes %d-999999/1000000' % start))


def started(example, *args):
    return subprocess.Popen(
        [sys.executable, ROOT / 'examples' / example, *args], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def ended(process):
    printed, said = process.communicate(timeout=PATIENCE)
    assert 'Traceback' not in said
    assert 'Warning' not in said
    return process.returncode, printed, said


@pytest.mark.parametrize('example', [OURS, THEIRS])
def test_a_copy_that_is_killed_goes_on(example, tmp_path):
    path, part = tmp_path / 'copy', tmp_path / 'copy.part'
    site = Site()
    with ThreadServer(site) as server:
        process = started(example, server.url, path)
        deadline = time.monotonic() + PATIENCE
        while not part.exists() or part.stat().st_size < 400_000:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        ended(process)
        there = part.stat().st_size
        code, printed, said = ended(started(example, server.url, path, '--sha256', SHA256))
    assert (code, printed) == (
        0, f'{path}: 1000000 bytes, {there} of them from an earlier run\n')
    assert '100%' in said
    assert path.read_bytes() == CONTENT
    assert [*tmp_path.iterdir()] == [path]
    assert len(site.asked) == 2
    assert site.asked[1][1] == b'"1"'


@pytest.mark.parametrize('example', [OURS, THEIRS])
def test_what_can_not_be_copied(example, tmp_path):
    path = tmp_path / 'copy'
    with ThreadServer(Site()) as server:
        code, printed, said = ended(started(example, f'{server.url}missing', path))
    assert (code, printed) == (1, '')
    assert 'the server answered 404' in said
    assert not path.exists()


def lines_of_code(example):
    """Without those that are empty or a comment, and without docstrings."""
    source = (ROOT / 'examples' / example).read_text(encoding='utf-8')
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.update(range(first.lineno, first.end_lineno + 1))
    return sum(1 for number, line in enumerate(source.splitlines(), 1)
               if line.strip() and not line.strip().startswith('#') and number not in docstrings)


def test_it_is_not_longer():
    assert lines_of_code(OURS) <= lines_of_code(THEIRS)
