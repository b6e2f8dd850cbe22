#!/usr/bin/env bash
# aiohttp and Flask call two ranges of a file unsatisfiable, and Falcon calls them invalid.
#
# Packages: aiohttp 3.14.5, Flask 3.1.3 on Werkzeug 3.1.9, Falcon 4.4.0; Starlette 1.10.0 and WhiteNoise 6.12.0
#   beside them.
# Guess: a server that does not send several ranges at once ignores the field and sends the whole file with 200, as
#   RFC 9110 14.2 lets it; 416 says that no range lies within the file (15.5.17). Of two ranges, of which one lies
#   behind the end, the other is sent.
# What happens: for `bytes=0-1,4-5` of ten bytes, aiohttp and Flask say 416 with `content-range: bytes */10`, which
#   tells a client only that there are ten bytes, and Falcon says 400. Starlette sends both, but says 416 as soon as one
#   of them lies behind the end. WhiteNoise sends the whole file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5 flask==3.1.3 werkzeug==3.1.9 \
    falcon==4.4.0 starlette==1.10.0 uvicorn==0.54.0 whitenoise==6.12.0 2>/dev/null
mkdir "$work/files"
printf 0123456789 > "$work/files/file"
"$work/venv/bin/python" - "$work/files" <<'PYTHON'
import asyncio
import http.client
import queue
import socket
import sys
import threading

import aiohttp.web
import falcon
import flask
import starlette.applications
import starlette.routing
import starlette.staticfiles
import uvicorn
import werkzeug.serving
import whitenoise

FOLDER = sys.argv[1]


def of_wsgi(application):
    class Quiet(werkzeug.serving.WSGIRequestHandler):
        def log(self, *_):
            pass
    server = werkzeug.serving.make_server('127.0.0.1', 0, application, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def of_asyncio(start):
    ports = queue.Queue()

    async def serve():
        ports.put(await start())
        await asyncio.Event().wait()
    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    return ports.get()


def with_aiohttp():
    async def start():
        application = aiohttp.web.Application()
        application.router.add_static('/', FOLDER)
        runner = aiohttp.web.AppRunner(application, access_log=None)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, '127.0.0.1', 0).start()
        return runner.addresses[0][1]
    return of_asyncio(start)


def with_flask():
    application = flask.Flask('files')
    application.add_url_rule('/file', view_func=lambda: flask.send_file(f'{FOLDER}/file', 'text/plain'), endpoint='f')
    return of_wsgi(application)


def with_falcon():
    application = falcon.App()
    application.add_static_route('/', FOLDER)
    return of_wsgi(application)


def with_starlette():
    files = starlette.staticfiles.StaticFiles(directory=FOLDER)
    application = starlette.applications.Starlette(routes=[starlette.routing.Mount('/', files)])
    listener = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(uvicorn.Config(application, log_level='critical'))
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    return listener.getsockname()[1]


def with_whitenoise():
    return of_wsgi(whitenoise.WhiteNoise(None, root=FOLDER, autorefresh=True))


def ask(port, ranges):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    connection.request('GET', '/file', headers={'range': ranges})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    kind = response.headers.get_content_type() if content.startswith(b'--') else None
    return response.status, response.headers['content-range'] or kind


for server, expected in ((with_aiohttp, [(416, 'bytes */10')] * 2), (with_flask, [(416, 'bytes */10')] * 2),
                         (with_falcon, [(400, None)] * 2),
                         (with_starlette, [(206, 'multipart/byteranges'), (416, 'bytes */10')]),
                         (with_whitenoise, [(200, None)] * 2)):
    port = server()
    assert ask(port, 'bytes=4-5') == (206, 'bytes 4-5/10')
    seen = [ask(port, ranges) for ranges in ('bytes=0-1,4-5', 'bytes=0-1,20-30')]
    print(f'{server.__name__.removeprefix("with_")}: 0-1,4-5 {seen[0]}, 0-1,20-30 {seen[1]}')
    assert seen == expected
PYTHON
# Seen:
#   aiohttp: 0-1,4-5 (416, 'bytes */10'), 0-1,20-30 (416, 'bytes */10')
#   flask: 0-1,4-5 (416, 'bytes */10'), 0-1,20-30 (416, 'bytes */10')
#   falcon: 0-1,4-5 (400, None), 0-1,20-30 (400, None)
#   starlette: 0-1,4-5 (206, 'multipart/byteranges'), 0-1,20-30 (416, 'bytes */10')
#   whitenoise: 0-1,4-5 (200, None), 0-1,20-30 (200, None)
