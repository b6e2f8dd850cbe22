#!/usr/bin/env bash
# waitress answers HEAD with the content of the application, on a connection that stays open.
#
# Package: waitress 3.0.2.
# Guess: a WSGI application may answer HEAD as it answers GET; the server leaves the content out,
#   since a response to HEAD has none (RFC 9110 9.3.2). granian does so for the same application.
# What happens: the content is sent behind the head, and the connection is kept. A client that reads the
#   next response on it finds `hello` where a status line should be.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check waitress==3.0.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import http.client
import threading

import waitress


def app(environ, start_response):
    start_response('200 OK', [('Content-Length', '5')])
    return [b'hello']


server = waitress.create_server(app, host='127.0.0.1', port=0)
threading.Thread(target=server.run, daemon=True).start()

connection = http.client.HTTPConnection('127.0.0.1', server.effective_port, timeout=10)
connection.request('HEAD', '/')
response = connection.getresponse()
response.read()
print(f'HEAD: {response.status}, will close: {response.will_close}')
assert not response.will_close
connection.request('GET', '/')
try:
    connection.getresponse()
except http.client.BadStatusLine as error:
    print(f'the next response on this connection: bad status line {str(error).strip()!r}')
    assert str(error).startswith('helloHTTP/1.1 200 OK')
else:
    raise SystemExit('the content was left out')
PYTHON
# Seen:
#   HEAD: 200, will close: False
#   the next response on this connection: bad status line 'helloHTTP/1.1 200 OK'
