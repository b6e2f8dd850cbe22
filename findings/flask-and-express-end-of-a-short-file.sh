#!/usr/bin/env bash
# Flask and Express refuse to send "the last 100 bytes" of a file that has 10.
#
# Packages: Flask 3.1.3 on Werkzeug 3.1.9; express 5.2.1 (npm), whose static files are those of send and range-parser.
# Guess: `bytes=-100` of a shorter file is the whole file in a 206 (RFC 9110 14.1.2: "if the selected representation
#   is shorter than the specified suffix-length, the entire representation is used"), as `bytes=0-99` is.
# What happens: 416. A program that reads the last 64 KiB of a ZIP or Parquet file first, for its directory, works
#   until a file is smaller than that. `bytes=0-99` of the same file is a 206.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf 0123456789 > "$work/file"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check flask==3.1.3 werkzeug==3.1.9 2>/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" express@5.2.1 2>/dev/null
"$work/venv/bin/python" - "$work/file" <<'PYTHON'
import sys

import flask

application = flask.Flask('files')
application.add_url_rule('/file', view_func=lambda: flask.send_file(sys.argv[1], 'text/plain'), endpoint='file')
for ranges, expected in (('bytes=-10', (206, 'bytes 0-9/10')), ('bytes=0-99', (206, 'bytes 0-9/10')),
                         ('bytes=-100', (416, 'bytes */10'))):
    response = application.test_client().get('/file', headers={'range': ranges})
    print(f'Flask, {ranges}: {response.status_code}, {response.headers["content-range"]}')
    assert (response.status_code, response.headers['content-range']) == expected
PYTHON
cat > "$work/test.cjs" <<'NODE'
const assert = require('node:assert');
const express = require('express');

const application = express();
application.use(express.static(process.argv[2]));
application.use((error, request, response, next) => response.status(error.status).set(error.headers).end());
const server = application.listen(0, '127.0.0.1', async () => {
  for (const [range, expected] of [
    ['bytes=-10', [206, 'bytes 0-9/10']],
    ['bytes=0-99', [206, 'bytes 0-9/10']],
    ['bytes=-100', [416, 'bytes */10']],
  ]) {
    const response = await fetch(`http://127.0.0.1:${server.address().port}/file`, { headers: { range } });
    const seen = [response.status, response.headers.get('content-range')];
    console.log(`Express, ${range}: ${seen.join(', ')}`);
    assert.deepStrictEqual(seen, expected);
  }
  process.exit();
});
NODE
node "$work/test.cjs" "$work"
# Seen:
#   Flask, bytes=-10: 206, bytes 0-9/10
#   Flask, bytes=0-99: 206, bytes 0-9/10
#   Flask, bytes=-100: 416, bytes */10
#   Express, bytes=-10: 206, bytes 0-9/10
#   Express, bytes=0-99: 206, bytes 0-9/10
#   Express, bytes=-100: 416, bytes */10
