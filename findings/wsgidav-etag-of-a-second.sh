#!/usr/bin/env bash
# Two contents of one length that are written within a second have the same strong ETag in WsgiDAV.
#
# Package: WsgiDAV 4.4.0, with cheroot 11.1.2.
# Guess: a strong validator changes whenever the content does (RFC 9110 8.8.1): it holds the time of the
#   change in nanoseconds, or a digest. So after a second PUT `If-None-Match` with the first tag gets the
#   new content.
# What happens: the tag is the inode, the time in whole seconds and the length. The client is told 304, for
#   ever after, and keeps "on!"; `If-Match` with the old tag lets a writer overwrite what it has never seen.
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
import time

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


while time.time() % 1 > 0.3:  # both within one second
    time.sleep(0.05)
ask('PUT', '/switch', b'on!')
first, content = ask('GET', '/switch')
assert content == b'on!'
ask('PUT', '/switch', b'off')
tag = first.getheader('etag')
second, content = ask('GET', '/switch', If_None_Match=tag)
print('GET with the first tag, strong:', not tag.startswith('W/'), 'status', second.status, content)
assert (tag[0], second.status, content) == ('"', 304, b'')
whole, content = ask('GET', '/switch')
print('the content is', content, 'the tag is the same:', whole.getheader('etag') == tag)
assert content == b'off' and whole.getheader('etag') == tag
third, _ = ask('PUT', '/switch', b'on?', If_Match=tag)
print('PUT with If-Match and the first tag:', third.status)
assert third.status == 204
server.stop()
PYTHON
# Seen:
#   GET with the first tag, strong: True status 304 b''
#   the content is b'off' the tag is the same: True
#   PUT with If-Match and the first tag: 204
