#!/usr/bin/env bash
# Tornado gives a file that has changed its old ETag, and says 304 to who asks whether it has changed.
#
# Package: Tornado 6.6.1.
# Guess: StaticFileHandler's ETag is a hash of the file's content, so a file that is replaced has another, and
#   `If-None-Match` with the old one gets 200 and the new file.
# What happens: the hash is computed once for each path and kept as long as the process lives. The new file is sent
#   with the ETag of the old one, and a cache that asks with it gets 304 until the server is restarted; one that asks
#   with `If-Modified-Since` gets the new file. With the setting `static_hash_cache=False` all is as guessed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check tornado==6.6.1 2>/dev/null
mkdir "$work/files"
"$work/venv/bin/python" - "$work/files" <<'PYTHON'
import asyncio
import os
import pathlib
import sys

import tornado.httpclient
import tornado.httpserver
import tornado.netutil
import tornado.web

FOLDER = sys.argv[1]
FILE = pathlib.Path(FOLDER, 'file')


def write(content, day):
    new = FILE.with_suffix('.new')
    new.write_bytes(content)
    os.utime(new, (86400 * day, 86400 * day))
    new.replace(FILE)


def serve(**settings):
    handlers = [('/(.*)', tornado.web.StaticFileHandler, {'path': FOLDER})]
    application = tornado.web.Application(handlers, log_function=lambda handler: None, **settings)
    sockets = tornado.netutil.bind_sockets(0, '127.0.0.1')
    tornado.httpserver.HTTPServer(application).add_sockets(sockets)
    return f'http://127.0.0.1:{sockets[0].getsockname()[1]}/file'


async def ask(url, **fields):
    headers = {name.replace('_', '-'): value for name, value in fields.items()}
    answer = await tornado.httpclient.AsyncHTTPClient().fetch(url, raise_error=False, headers=headers)
    return answer.code, answer.body, answer.headers.get('etag'), answer.headers.get('last-modified')


async def main():
    for settings, expected in (({}, [True, (304, b''), (200, b'new')]),
                               ({'static_hash_cache': False}, [False, (200, b'new'), (200, b'new')])):
        url = serve(**settings)
        tornado.web.StaticFileHandler.reset()
        write(b'old', day=10000)
        code, content, etag, date = await ask(url)
        assert (code, content) == (200, b'old')
        write(b'new', day=20000)
        code, content, later, _ = await ask(url)
        assert (code, content) == (200, b'new')
        seen = [later == etag, (await ask(url, if_none_match=etag))[:2], (await ask(url, if_modified_since=date))[:2]]
        print(f'{settings}: the same ETag {seen[0]}, if-none-match {seen[1]}, if-modified-since {seen[2]}')
        assert seen == expected

asyncio.run(main())
PYTHON
# Seen:
#   {}: the same ETag True, if-none-match (304, b''), if-modified-since (200, b'new')
#   {'static_hash_cache': False}: the same ETag False, if-none-match (200, b'new'), if-modified-since (200, b'new')
