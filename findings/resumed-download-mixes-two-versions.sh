#!/usr/bin/env bash
# aiohttp, Flask, Tornado, WhiteNoise and Falcon send ranges of another version than the one that was asked for.
#
# Packages: aiohttp 3.14.5, Flask 3.1.3 on Werkzeug 3.1.9, Tornado 6.6.1, WhiteNoise 6.12.0, Falcon 4.4.0.
# Guess: a server of files that answers ranges and sends a strong ETag reads it back too. A download that goes on with
#   `If-Range` and the old ETag gets 200 and the whole new file (RFC 9110 13.1.5); one whose parts carry `If-Match`
#   gets 412 (13.1.1).
# What happens: Flask reads `If-Range` and not `If-Match`, aiohttp the other way round (a date in its `If-Range`
#   works, an ETag does not), and Tornado, WhiteNoise and Falcon read neither. All of them answer 206 with the rest
#   of the new file, which ends up behind the beginning of the old one. Only the ETag of the 206 tells, and
#   Tornado's does not: it is that of the old file (see tornado-etag-of-a-changed-file.sh).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    aiohttp==3.14.5 flask==3.1.3 werkzeug==3.1.9 tornado==6.6.1 whitenoise==6.12.0 falcon==4.4.0 2>/dev/null
mkdir "$work/files"
"$work/venv/bin/python" - "$work/files" <<'PYTHON'
import asyncio
import http.client
import os
import pathlib
import queue
import sys
import threading

import aiohttp.web
import falcon
import flask
import tornado.httpserver
import tornado.netutil
import tornado.web
import werkzeug.serving
import whitenoise

FOLDER = sys.argv[1]
FILE = pathlib.Path(FOLDER, 'file')


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
    application.add_url_rule('/file', view_func=lambda: flask.send_file(FILE), endpoint='file')
    return of_wsgi(application)


def with_tornado():
    async def start():
        handlers = [('/(.*)', tornado.web.StaticFileHandler, {'path': FOLDER})]
        application = tornado.web.Application(handlers, log_function=lambda handler: None)
        sockets = tornado.netutil.bind_sockets(0, '127.0.0.1')
        tornado.httpserver.HTTPServer(application).add_sockets(sockets)
        return sockets[0].getsockname()[1]
    return of_asyncio(start)


def with_whitenoise():
    return of_wsgi(whitenoise.WhiteNoise(None, root=FOLDER, autorefresh=True))


def with_falcon():
    application = falcon.App()
    application.add_static_route('/', FOLDER)
    return of_wsgi(application)


def ask(port, **fields):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    connection.request('GET', '/file', headers={name.replace('_', '-'): value for name, value in fields.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content if response.status < 300 else None, response.headers['etag']


def write(content, day):
    new = FILE.with_suffix('.new')
    new.write_bytes(content)
    os.utime(new, (86400 * day, 86400 * day))
    new.replace(FILE)


MIXED, WHOLE, FAILED = (206, b'NEW'), (200, b'NEWNEW'), (412, None)
for server, expected in ((with_flask, [WHOLE, MIXED]), (with_aiohttp, [MIXED, FAILED]), (with_tornado, [MIXED, MIXED]),
                         (with_whitenoise, [MIXED, MIXED]), (with_falcon, [MIXED, MIXED])):
    write(b'oldold', day=10000)
    port = server()
    status, content, etag = ask(port)
    assert (status, content) == (200, b'oldold') and etag.startswith('"')
    assert ask(port, range='bytes=3-', if_range=etag) == (206, b'old', etag)
    write(b'NEWNEW', day=20000)
    seen = [ask(port, range='bytes=3-', **{name: etag}) for name in ('if_range', 'if_match')]
    print(f'{server.__name__.removeprefix("with_")}: if-range {seen[0][:2]}, if-match {seen[1][:2]}')
    assert [answer[:2] for answer in seen] == expected
    assert (etag in [answer[2] for answer in seen]) == (server is with_tornado)
PYTHON
# Seen:
#   flask: if-range (200, b'NEWNEW'), if-match (206, b'NEW')
#   aiohttp: if-range (206, b'NEW'), if-match (412, None)
#   tornado: if-range (206, b'NEW'), if-match (206, b'NEW')
#   whitenoise: if-range (206, b'NEW'), if-match (206, b'NEW')
#   falcon: if-range (206, b'NEW'), if-match (206, b'NEW')
