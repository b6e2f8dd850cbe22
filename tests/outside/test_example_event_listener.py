"""examples/event_listener.py and its counterpart with httpx2, run as a person runs them.

Both ask the same server.
"""

import http.server
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = sorted({path.parent for path in ROOT.glob('layers/*/lowhaio_*.py')})
OURS = ROOT / 'examples' / 'event_listener.py'
COUNTERPART = ROOT / 'examples' / 'with_httpx2' / 'event_listener.py'

# So that a hang is a failure. Nothing waits for it to pass.
PATIENCE = 60

STREAM = {'content-type': 'text/event-stream; charset=utf-8'}
CUT = {**STREAM, 'content-length': '1000', 'connection': 'close'}
ANSWERS = [
    (200, STREAM, ': hello\nretry: 10\nid: 1\nevent: add\ndata: a\ndata: \xe9\n\n'),
    (503, {}, 'busy'),
    (429, {}, 'busy'),
    (307, {'location': '/moved'}, ''),
    (200, CUT, 'id: 2\ndata: b\n\nid: 3\ndata: c\n\nid: 4\ndata: no end\n'),
    (200, STREAM, 'data: d\n\n'),
    (204, {}, ''),
]
PRINTED = [
    {'type': 'add', 'data': 'a\n\xe9', 'id': '1'}, {'type': 'message', 'data': 'b', 'id': '2'},
    {'type': 'message', 'data': 'c', 'id': '3'}, {'type': 'message', 'data': 'd', 'id': '3'}]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.server.asked.append((self.path, self.headers['last-event-id']))
        code, fields, content = self.server.answers.pop(0)
        self.send_response(code)
        for name, text in {'content-length': str(len(content.encode())), **fields}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *args):
        pass


def run(example, answers, *args):
    """The exit code, what it printed and said, and what the server was asked for."""
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.answers, server.asked = list(answers), []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            ended = subprocess.run(
                [sys.executable, example, f'http://127.0.0.1:{server.server_port}/events', *args],
                capture_output=True, check=False, text=True, timeout=PATIENCE, env={
                    **{name: value for name, value in os.environ.items()
                       if not name.lower().endswith('_proxy')},
                    'PYTHONPATH': os.pathsep.join(map(str, (ROOT, *LAYERS))),
                    'PYTHONWARNINGS': 'error'})
        finally:
            server.shutdown()
            thread.join()
    assert 'Traceback' not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr, server.asked


@pytest.mark.parametrize('example', [OURS, COUNTERPART], ids=['ours', 'httpx2'])
def test_it_goes_on_until_the_server_says_no(example, tmp_path):
    state = tmp_path / 'state'
    code, printed, said, asked = run(example, ANSWERS, '--state', state)
    assert code == 0
    assert [json.loads(line) for line in printed.splitlines()] == PRINTED
    assert asked == [('/events', None), *[('/events', '1')] * 3, ('/moved', '1'), ('/events', '3'),
                     ('/events', '3')]
    assert [line.partition(',')[0] for line in said.splitlines()] == [
        f'Failure {attempt}' for attempt in (1, 2, 3, 1, 1)]
    assert state.read_text() == '3'
    assert run(example, [(204, {}, '')], '--state', state)[3] == [('/events', '3')]


@pytest.mark.parametrize('example', [OURS, COUNTERPART], ids=['ours', 'httpx2'])
def test_it_ends_with_what_does_not_pass(example):
    for answer, text in (((404, {}, 'none such'), '404'),
                         ((200, {'content-type': 'text/html'}, '<p>'), 'text/html')):
        code, printed, said, asked = run(example, [answer])
        assert (code, printed, len(asked)) == (1, '', 1)
        assert text in said


def lines_of_code(path):
    """How many lines are neither blank nor comments."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding='utf-8')).readline)
    return len({line for token in tokens if token.type not in (
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER) for line in range(token.start[0], token.end[0] + 1)})


def test_it_is_not_longer_than_with_httpx2():
    assert lines_of_code(OURS) <= lines_of_code(COUNTERPART)
