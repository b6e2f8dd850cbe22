#!/usr/bin/env bash
# Four readers of forms refuse a preamble, and undici an epilogue as well.
#
# Packages: @remix-run/multipart-parser 0.16.3, undici 6.22.0, busboy 1.6.0 (npm); requests-toolbelt 1.0.0,
#   starlette 1.10.0 with python-multipart 0.0.34, multipart 2.0.1 (pip).
# Guess: there may be text before the first delimiter and behind the last one, which a reader ignores (RFC
#   2046 5.1.1); mail programs have written "This is a multi-part message" there for thirty years. All read
#   the file.
# What happens: busboy and multipart do. To @remix-run/multipart-parser, undici, starlette and
#   requests-toolbelt a preamble is an error; to undici, so is an epilogue.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" \
    @remix-run/multipart-parser@0.16.3 undici@6.22.0 busboy@1.6.0
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    requests-toolbelt==1.0.0 starlette==1.10.0 python-multipart==0.0.34 multipart==2.0.1 2>/dev/null
cat > "$work/form.txt" <<'FORM'
--limit
Content-Disposition: form-data; name="a"; filename="f"
Content-Type: text/plain

hello
--limit--
FORM
sed -i 's/$/\r/' "$work/form.txt"
cp "$work/form.txt" "$work/plain"
{ printf 'This is a form.\r\n'; cat "$work/form.txt"; } > "$work/preamble"
{ cat "$work/form.txt"; printf 'That was a form.\r\n'; } > "$work/epilogue"
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import { readFileSync } from 'node:fs';
import busboy from 'busboy';
import { parseMultipartRequest } from '@remix-run/multipart-parser';
import { Response } from 'undici';

const headers = { 'content-type': 'multipart/form-data; boundary=limit' };
const clients = {
  busboy: [(form) => new Promise((resolve, reject) => {
    const parser = busboy({ headers });
    parser.on('file', async (_, file) => resolve(Buffer.concat(await file.toArray()).toString()));
    parser.on('error', reject);
    parser.end(form);
  }), ['hello', 'hello', 'hello']],
  '@remix-run/multipart-parser': [async (form) => {
    const request = new Request('http://h/', { method: 'POST', body: form, headers });
    for await (const part of parseMultipartRequest(request)) return Buffer.from(part.bytes).toString();
  }, ['hello', 'an error', 'hello']],
  undici: [async (form) => (await new Response(form, { headers }).formData()).get('a').text(),
    ['hello', 'an error', 'an error']],
};
for (const [name, [read, expected]] of Object.entries(clients)) {
  const seen = [];
  for (const form of ['plain', 'preamble', 'epilogue']) {
    seen.push(await read(readFileSync(new URL(form, import.meta.url))).catch(() => 'an error'));
  }
  console.log(`${name}: plain, with preamble, with epilogue: ${seen.join(', ')}`);
  assert.deepStrictEqual(seen, expected);
}
NODE
node "$work/test.mjs"
"$work/venv/bin/python" - "$work" 2>/dev/null <<'PYTHON'
import asyncio
import io
import pathlib
import sys

import multipart
from requests_toolbelt.multipart.decoder import MultipartDecoder
from starlette.requests import Request

TYPE = 'multipart/form-data; boundary=limit'


def with_multipart(form):
    environ = {'REQUEST_METHOD': 'POST', 'CONTENT_TYPE': TYPE, 'CONTENT_LENGTH': str(len(form)),
               'wsgi.input': io.BytesIO(form)}
    return multipart.parse_form_data(environ)[1]['a'].file.read()


def with_requests_toolbelt(form):
    return MultipartDecoder(form, TYPE).parts[0].content


def with_starlette(form):
    async def read():
        async def receive():
            return {'type': 'http.request', 'body': form, 'more_body': False}
        scope = {'type': 'http', 'method': 'POST', 'headers': [(b'content-type', TYPE.encode())]}
        return await (await Request(scope, receive).form())['a'].read()
    return asyncio.run(read())


for client, expected in ((with_multipart, [b'hello', b'hello', b'hello']),
                         (with_requests_toolbelt, [b'hello', 'an error', b'hello']),
                         (with_starlette, [b'hello', 'an error', b'hello'])):
    seen = []
    for name in ('plain', 'preamble', 'epilogue'):
        try:
            seen.append(client((pathlib.Path(sys.argv[1]) / name).read_bytes()))
        except Exception:
            seen.append('an error')
    print(f'{client.__name__.removeprefix("with_")}: plain, with preamble, with epilogue:', *seen)
    assert seen == expected
PYTHON
# Seen:
#   busboy: plain, with preamble, with epilogue: hello, hello, hello
#   @remix-run/multipart-parser: plain, with preamble, with epilogue: hello, an error, hello
#   undici: plain, with preamble, with epilogue: hello, an error, an error
#   multipart: plain, with preamble, with epilogue: b'hello' b'hello' b'hello'
#   requests_toolbelt: plain, with preamble, with epilogue: b'hello' an error b'hello'
#   starlette: plain, with preamble, with epilogue: b'hello' an error b'hello'
