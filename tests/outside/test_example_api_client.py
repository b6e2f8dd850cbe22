"""The client of a JSON API in examples/, and the same with httpx2, against the same server."""

import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import tokenize

import pytest

pytest.importorskip('httpx2', reason='needs httpx2')

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = [ROOT / 'examples' / 'api_client.py', ROOT / 'examples/with_httpx2/api_client.py']
PATHS = os.pathsep.join(map(str, (
    ROOT, *sorted({path.parent for path in ROOT.glob('layers/*/lowhaio_*.py')}))))


class Api(http.server.BaseHTTPRequestHandler):
    """Answers by the next of the server's faults, as long as there are any."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        page = int(re.fullmatch(r'/v1/notes\?page=(\d)', self.path)[1])
        self.answer(200, {'notes': self.server.notes[2 * page - 2:2 * page],
                          'next': page + 1 if len(self.server.notes) > 2 * page else None})

    def do_POST(self):
        note = json.loads(self.rfile.read(int(self.headers['content-length'])))
        note['id'] = len(self.server.notes)
        if self.server.faults[:1] in ([], [None]):
            self.server.notes.append(note)
        self.answer(201, {'id': note['id']})

    def answer(self, code, document):
        self.server.asked.append((self.command, self.path, self.headers['authorization']))
        content = json.dumps(document).encode()
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == 'close':
            self.close_connection = True
            return
        self.send_response_only(fault if isinstance(fault, int) else code)
        if fault == 503:
            self.send_header('retry-after', '0')
        self.send_header('content-type', 'application/json')
        self.send_header('content-length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:5] if fault == 'cut off' else content)
        self.close_connection = fault == 'cut off'

    def log_message(self, *args):
        pass


def run(program, *args, faults=()):
    """The exit code, what it printed, its last words, and what the server was asked."""
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Api) as server:
        server.asked, server.faults = [], list(faults)
        server.notes = [{'id': number, 'title': f'Zoë {number}'} for number in range(3)]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            origin = f'http://127.0.0.1:{server.server_port}'
            ended = subprocess.run(
                [sys.executable, program, f'{origin}/v1', '--pause', '0.01', *args],
                env={**os.environ, 'PYTHONPATH': PATHS, 'API_TOKEN': 'secret'},
                capture_output=True, text=True, timeout=60, check=False)
        finally:
            server.shutdown()
            thread.join()
    assert 'Traceback' not in ended.stderr
    return ended.returncode, ended.stdout.splitlines(), ended.stderr, server.asked


@pytest.mark.parametrize('program', PROGRAMS, ids=['lowhaio', 'httpx2'])
def test_notes_are_added_and_shown_whatever_fails_on_the_way(program):
    code, printed, said, asked = run(
        program, '--add', 'New', faults=[503, 429, None, 'close', 'cut off', 503])
    assert (code, said) == (0, '')
    assert printed == ['added 3', '0 Zoë 0', '1 Zoë 1', '2 Zoë 2', '3 New']
    post, first, second = ((method, f'/v1/notes{query}', 'Bearer secret') for method, query in (
        ('POST', ''), ('GET', '?page=1'), ('GET', '?page=2')))
    assert asked == [post] * 3 + [first] * 4 + [second]


@pytest.mark.parametrize('program', PROGRAMS, ids=['lowhaio', 'httpx2'])
@pytest.mark.parametrize('faults, args, number', [
    ([404], (), 1), ([503] * 9, (), 5), (['close'], ('--add', 'New'), 1), (['close'] * 9, (), 5)])
def test_what_fails_for_good_is_told(program, faults, args, number):
    code, printed, said, asked = run(program, *args, faults=faults)
    assert (code, printed, len(asked)) == (1, [], number)
    assert re.match(r'\w+Error: \S', said)


def lines(program):
    """Those with code."""
    with tokenize.open(program) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
               tokenize.ENDMARKER)
    return len({number for token in tokens if token.type not in nothing
                for number in range(token.start[0], token.end[0] + 1)
                if not token.string.startswith('"""')})


def test_ours_is_not_longer():
    ours, theirs = map(lines, PROGRAMS)
    assert ours <= theirs
