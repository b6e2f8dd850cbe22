#!/usr/bin/env bash
# s3rver's listings in pages leave out keys.
#
# Package: s3rver 3.7.1 (npm).
# Guess: a listing that goes on with NextContinuationToken has each key once, however long its pages are.
# What happens: keys are sorted folder by folder, so `a/b` comes before `a-`. But the next page begins with what is
#   greater than the last key in bytes, and `a-` is less than `a/b`: if `a/b` is the last key of a page, `a-` is in
#   none. Before that, Node.js 17 and later has to be told --openssl-legacy-provider, or each listing of more than
#   one page is a 500, because the token is made with a cipher that OpenSSL 3 does not load.
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

function ask(port, method, path) {
  return new Promise((resolve, reject) => {
    const headers = { 'content-length': 0 };
    const request = http.request({ host: '127.0.0.1', port, method, path, headers }, (response) => {
      let body = '';
      response.on('data', (data) => { body += data; });
      response.on('end', () => resolve(body));
    });
    request.on('error', reject).end();
  });
}

async function listed(port, size) {
  const keys = [];
  let more = '';
  do {
    const page = await ask(port, 'GET', `/bucket?list-type=2&max-keys=${size}${more}`);
    keys.push(...[...page.matchAll(/<Key>(.*?)<\/Key>/g)].map((match) => match[1]));
    const token = page.match(/<NextContinuationToken>(.*?)<\/NextContinuationToken>/);
    more = token ? `&continuation-token=${encodeURIComponent(token[1])}` : '';
  } while (more);
  return keys;
}

server.run().then(async ({ port }) => {
  for (const key of ['a-', 'a/b', 'c']) {
    await ask(port, 'PUT', `/bucket/${key}`);
  }
  for (const [size, expected] of [[1000, ['a/b', 'a-', 'c']], [1, ['a/b', 'c']]]) {
    const seen = await listed(port, size);
    console.log(`max-keys=${size}: ${JSON.stringify(seen)}`);
    assert.deepStrictEqual(seen, expected);
  }
  process.exit();
});
NODE
node --openssl-legacy-provider "$work/test.cjs" "$work/data"
# Seen:
#   max-keys=1000: ["a/b","a-","c"]
#   max-keys=1: ["a/b","c"]
