#!/usr/bin/env bash
# superagent and make-fetch-happen ask again at once, whatever Retry-After says; superagent a POST, too.
#
# Packages: superagent 10.4.2, make-fetch-happen 16.0.1; got 16.1.0 beside them (npm).
# Guess: a client that offers retries and meets `503` with `Retry-After: 2` waits two seconds (RFC 9110
#   10.2.3), or gives up; and does not repeat a POST unasked (9.2.2).
# What happens: got waits. superagent's `retry(2)` sends the next request within milliseconds, for a POST as
#   for a GET. make-fetch-happen goes by its own times, and leaves a POST alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" \
    superagent@10.4.2 make-fetch-happen@16.0.1 got@16.1.0
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import http from 'node:http';
import { createRequire } from 'node:module';
import got from 'got';

const require = createRequire(import.meta.url);
const superagent = require('superagent');
const makeFetchHappen = require('make-fetch-happen');

let times;
const server = http.createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    times.push(performance.now());
    if (times.length === 1) {
      response.statusCode = 503;
      response.setHeader('retry-after', '2');
    }
    response.end();
  });
});
server.listen(0, '127.0.0.1', async () => {
  const url = `http://127.0.0.1:${server.address().port}/`;
  const retry = { retries: 2, minTimeout: 50 };
  const post = { method: 'POST', body: 'one order' };
  const cases = [
    ['got, GET', () => got(url), true],
    ['got, POST', () => got.post(url, { body: 'one order', throwHttpErrors: false }), null],
    ['superagent, GET', () => superagent.get(url).retry(2), false],
    ['superagent, POST', () => superagent.post(url).send('one order').retry(2), false],
    ['make-fetch-happen, GET', () => makeFetchHappen(url, { retry }), false],
    ['make-fetch-happen, POST', () => makeFetchHappen(url, { ...post, retry }), null],
  ];
  for (const [name, request, waits] of cases) {
    times = [];
    await request();
    const seen = times.length === 1 ? null : times[1] - times[0] > 1500;
    console.log(`${name}: ${seen === null ? 'one request' : seen ? 'waits' : 'the next request at once'}`);
    assert.strictEqual(seen, waits);
  }
  process.exit();
});
NODE
node "$work/test.mjs"
# Seen:
#   got, GET: waits
#   got, POST: one request
#   superagent, GET: the next request at once
#   superagent, POST: the next request at once
#   make-fetch-happen, GET: the next request at once
#   make-fetch-happen, POST: one request
