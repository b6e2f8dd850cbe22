#!/usr/bin/env bash
# node-fetch-cookies drops a cookie that is to be kept for a century, or was to be deleted before 1970.
#
# Package: node-fetch-cookies 2.1.1 (npm).
# Guess: an attribute that a client cannot use is ignored, and the cookie kept (RFC 6265 5.2); each date
#   since 1601 can be used (5.1.1). So Max-Age=3153600000 is a cookie for long, and `Expires=Mon, 01 Jan
#   1601 ...` deletes one. A value goes back as it came, quotes included (4.1.1).
# What happens: a Max-Age of more than 2**31 - 1 is invalid, and so is a date before 1970: the whole field
#   is ignored with a line on stderr. So the user is never logged in, or never logged out. Quotes are taken
#   off.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" node-fetch-cookies@2.1.1
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import http from 'node:http';
import { CookieJar, fetch } from 'node-fetch-cookies';

const answers = {
  '/login-for-long': 'session=1; Path=/; Max-Age=3153600000',
  '/login': 'session="2"; Path=/; Max-Age=2147483647',
  '/logout-1601': 'session=; Path=/; Expires=Mon, 01 Jan 1601 00:00:00 GMT',
  '/logout-1970': 'session=; Path=/; Expires=Thu, 01 Jan 1970 00:00:01 GMT',
};
const seen = [];
const server = http.createServer((request, response) => {
  if (answers[request.url]) response.setHeader('set-cookie', answers[request.url]);
  else seen.push(request.headers.cookie || 'no cookie');
  response.end();
});
server.listen(0, '127.0.0.1', async () => {
  const jar = new CookieJar();
  for (const path of Object.keys(answers)) {
    for (const step of [path, '/']) {
      await (await fetch(jar, `http://127.0.0.1:${server.address().port}${step}`)).text();
    }
    console.log(`after ${answers[path]}: ${seen.at(-1)}`);
  }
  server.close();
  assert.deepStrictEqual(seen, ['no cookie', 'session=2', 'session=2', 'no cookie']);
});
NODE
node "$work/test.mjs" 2>/dev/null
# Seen:
#   after session=1; Path=/; Max-Age=3153600000: no cookie
#   after session="2"; Path=/; Max-Age=2147483647: session=2
#   after session=; Path=/; Expires=Mon, 01 Jan 1601 00:00:00 GMT: session=2
#   after session=; Path=/; Expires=Thu, 01 Jan 1970 00:00:01 GMT: no cookie
