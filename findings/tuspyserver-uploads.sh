#!/usr/bin/env bash
# tuspyserver does not tell how far an upload without `filetype` is, nor that one sent at once is complete.
#
# Package: tuspyserver 4.4.3 with fastapi 0.165.0 and uvicorn 0.54.0.
# Guess: `Upload-Metadata` is optional in tus 1.0.0, so an upload that was accepted without it can be
#   resumed: HEAD tells its offset. `on_upload_complete` is called when the last byte is there, also if all
#   of them came with the POST (creation-with-upload, which the server offers).
# What happens: POST and PATCH succeed, but HEAD is 400 unless the metadata has `filename` and `filetype`,
#   so an interrupted upload cannot be resumed. After a POST with the whole content the answer is 201 with
#   the right `Upload-Offset`, and the callback is never called: the application does not learn of the file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    tuspyserver==4.4.3 fastapi==0.165.0 uvicorn==0.54.0 2>/dev/null
"$work/venv/bin/python" - "$work/data" <<'PYTHON' 2>/dev/null
import base64
import http.client
import os
import socket
import sys
import threading

import fastapi
import tuspyserver
import uvicorn

complete = []
os.mkdir(sys.argv[1])
app = fastapi.FastAPI()
app.include_router(tuspyserver.create_tus_router(
    prefix='files', files_dir=sys.argv[1], on_upload_complete=lambda path, metadata: complete.append(path)))
sock = socket.create_server(('127.0.0.1', 0))
server = uvicorn.Server(uvicorn.Config(app, log_level='error', lifespan='off'))
threading.Thread(target=server.run, args=([sock],), daemon=True).start()


def ask(method, path, content=b'', **fields):
    connection = http.client.HTTPConnection(*sock.getsockname(), timeout=10)
    fields = {name.replace('_', '-'): value for name, value in fields.items()}
    connection.request(method, path, content, {'Tus-Resumable': '1.0.0', **fields})
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader('upload-offset'), response.getheader('location')


OCTETS = 'application/offset+octet-stream'
NAME, TYPE = (base64.b64encode(text).decode() for text in (b'a.txt', b'text/plain'))
for what, fields, expected in (
    ('no metadata', {}, (400, None)),
    ('a file name', {'Upload_Metadata': f'filename {NAME}'}, (400, None)),
    ('name and type', {'Upload_Metadata': f'filename {NAME},filetype {TYPE}'}, (200, '5')),
):
    status, _, url = ask('POST', '/files/', Upload_Length='10', **fields)
    assert status == 201
    path = '/' + url.split('/', 3)[3]
    assert ask('PATCH', path, b'01234', Upload_Offset='0', Content_Type=OCTETS)[:2] == (204, '5')
    status, offset, _ = ask('HEAD', path)
    print(f'{what}: half of it is accepted, HEAD {status}, offset {offset}')
    assert (status, offset) == expected
    before = len(complete)
    assert ask('PATCH', path, b'56789', Upload_Offset='5', Content_Type=OCTETS)[:2] == (204, '10')
    in_parts = len(complete) - before
    status, offset, _ = ask(
        'POST', '/files/', b'0123456789', Upload_Length='10', Content_Type=OCTETS, **fields)
    at_once = len(complete) - before - in_parts
    print(f'   complete: told {in_parts} time(s). '
          f'All with the POST: {status}, offset {offset}, told {at_once} time(s)')
    assert (in_parts, status, offset, at_once) == (1, 201, '10', 0)
server.should_exit = True
PYTHON
# Seen:
#   no metadata: half of it is accepted, HEAD 400, offset None
#      complete: told 1 time(s). All with the POST: 201, offset 10, told 0 time(s)
#   a file name: half of it is accepted, HEAD 400, offset None
#      complete: told 1 time(s). All with the POST: 201, offset 10, told 0 time(s)
#   name and type: half of it is accepted, HEAD 200, offset 5
#      complete: told 1 time(s). All with the POST: 201, offset 10, told 0 time(s)
