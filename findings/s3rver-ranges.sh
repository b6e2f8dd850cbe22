#!/usr/bin/env bash
# s3rver answers "the last three bytes" with the first four, and promises a byte of an empty object.
#
# Package: s3rver 3.7.1 (npm).
# Guess: `bytes=-3` is the last three bytes (RFC 9110 14.1.2), as S3 has it. `bytes=0-` of an empty object
#   is 416, or 200 without content.
# What happens: `-3` is taken for `0-3`, and answered with 206 and `content-range: bytes 0-3/10`, so a
#   program that reads the end of a file (the directory of a ZIP or Parquet file) gets its beginning. For
#   the empty object, 206 and `content-length: 1` come, no byte, and the end of the connection.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" s3rver@3.7.1 2>/dev/null
mkdir "$work/data"
cat > "$work/test.cjs" <<'NODE'
const assert = require('node:assert');
const http = require('node:http');
const S3rver = require('s3rver');

const server = new S3rver({
  address: '127.0.0.1',
  port: 0,
  silent: true,
  directory: process.argv[2],
  configureBuckets: [{ name: 'bucket' }],
});

function ask(port, method, path, headers, content) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host: '127.0.0.1', port, method, path, headers }, (response) => {
      let body = '';
      const end = (how) => resolve([
        response.statusCode, response.headers['content-range'], response.headers['content-length'], body, how,
      ]);
      response.on('data', (data) => { body += data; });
      response.on('end', () => end('whole')).on('error', () => end('cut off'));
    });
    request.setTimeout(5000, () => request.destroy()).on('error', reject).end(content);
  });
}

server.run().then(async ({ port }) => {
  await ask(port, 'PUT', '/bucket/digits', { 'content-length': 10 }, '0123456789');
  await ask(port, 'PUT', '/bucket/empty', { 'content-length': 0 });
  for (const [path, range, expected] of [
    ['/bucket/digits', 'bytes=2-4', [206, 'bytes 2-4/10', '3', '234', 'whole']],
    ['/bucket/digits', 'bytes=-3', [206, 'bytes 0-3/10', '4', '0123', 'whole']],
    ['/bucket/empty', 'bytes=0-', [206, 'bytes 0-0/0', '1', '', 'cut off']],
  ]) {
    const seen = await ask(port, 'GET', path, { range });
    console.log(`${path}, ${range}: ${JSON.stringify(seen)}`);
    assert.deepStrictEqual(seen, expected);
  }
  process.exit();
});
NODE
node "$work/test.cjs" "$work/data"
# Seen:
#   /bucket/digits, bytes=2-4: [206,"bytes 2-4/10","3","234","whole"]
#   /bucket/digits, bytes=-3: [206,"bytes 0-3/10","4","0123","whole"]
#   /bucket/empty, bytes=0-: [206,"bytes 0-0/0","1","","cut off"]
