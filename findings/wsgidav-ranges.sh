#!/usr/bin/env bash
# WsgiDAV sends the last of several ranges as if it were all that was asked for, and takes any unit for
#   bytes.
#
# Package: WsgiDAV 4.4.0, with cheroot 11.1.2.
# Guess: two ranges get a multipart response with both, or the whole content under 200 (RFC 9110 14.2); and
#   a unit that the server does not know is ignored (14.1), so it is the whole content as well.
# What happens: 206 with the last range alone, and the first is missing. `lines=1-2` gets bytes 1 to 2.
#   `bytes=-0`, which cannot be satisfied, gets 206 and `content-range: bytes 10-9/10`, which is not valid.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check wsgidav==4.4.0 cheroot==11.1.2 2>/dev/null
mkdir "$work/data"
"$work/venv/bin/python" - "$work/data" <<'PYTHON'
import http.client
import sys
import threading

from cheroot import wsgi
from wsgidav.wsgidav_app import WsgiDAVApp

app = WsgiDAVApp({'provider_mapping': {'/': sys.argv[1]}, 'simple_dc': {'user_mapping': {'*': True}},
                  'logging': {'enable': False}, 'verbose': 0})
server = wsgi.Server(('127.0.0.1', 0), app)
server.prepare()
threading.Thread(target=server.serve, daemon=True).start()


def ask(method, path, content=None, **fields):
    connection = http.client.HTTPConnection('127.0.0.1', server.bind_addr[1], timeout=10)
    fields = {name.replace('_', '-'): value for name, value in fields.items()}
    connection.request(method, path, content, fields)
    response = connection.getresponse()
    return response, response.read()


ask('PUT', '/digits', b'0123456789')
for range_, expected in (
    ('bytes=2-4', (206, 'bytes 2-4/10', b'234')),
    ('bytes=0-0,2-3', (206, 'bytes 2-3/10', b'23')),
    ('lines=1-2', (206, 'bytes 1-2/10', b'12')),
    ('bytes=-0', (206, 'bytes 10-9/10', b'')),
):
    response, content = ask('GET', '/digits', Range=range_)
    seen = response.status, response.getheader('content-range'), content
    print(f'{range_}: {seen}')
    assert seen == expected
server.stop()
PYTHON
# Seen:
#   bytes=2-4: (206, 'bytes 2-4/10', b'234')
#   bytes=0-0,2-3: (206, 'bytes 2-3/10', b'23')
#   lines=1-2: (206, 'bytes 1-2/10', b'12')
#   bytes=-0: (206, 'bytes 10-9/10', b'')
