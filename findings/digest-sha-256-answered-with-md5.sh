#!/usr/bin/env bash
# Four packages answer a Digest challenge for SHA-256 with MD5, and say so.
#
# Packages: digest-fetch 3.1.1, @mhoc/axios-digest-auth 0.8.0, @lukesthl/ts-axios-digest-auth 1.0.5, needle
#   3.5.0 (npm).
# Guess: `algorithm=SHA-256` has been there since 2015 (RFC 7616). Who does not know it ignores the
#   challenge (3.3: "If the algorithm is not understood, the challenge should be ignored"), and the caller
#   gets the 401 without a second request.
# What happens: a second request is sent with a hash by MD5 of the password: three say `algorithm=MD5`,
#   needle says nothing, which means MD5. It cannot be right, and looks like a wrong password.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" axios@1.21.1 needle@3.5.0 \
    @mhoc/axios-digest-auth@0.8.0 @lukesthl/ts-axios-digest-auth@1.0.5 digest-fetch@3.1.1
cat > "$work/test.cjs" <<'NODE'
const assert = require('node:assert');
const http = require('node:http');
const mhoc = require('@mhoc/axios-digest-auth').default;
const lukesthl = require('@lukesthl/ts-axios-digest-auth').AxiosDigestAuth;
const digestFetch = require('digest-fetch');
const needle = require('needle');

const DigestFetch = digestFetch.default || digestFetch;
const user = { username: 'user', password: 'secret' };
const clients = {
  'digest-fetch': (url) => new DigestFetch(user.username, user.password).fetch(url),
  '@mhoc/axios-digest-auth': (url) => new mhoc(user).request({ method: 'GET', url, headers: {} }),
  '@lukesthl/ts-axios-digest-auth': (url) => new lukesthl(user).request({ method: 'GET', url }),
  needle: (url) => needle('get', url, null, { ...user, auth: 'digest' }),
};
let given;
const server = http.createServer((request, response) => {
  given.push(request.headers.authorization);
  response.statusCode = 401;
  response.setHeader('www-authenticate', 'Digest realm="r", nonce="n", qop="auth", algorithm=SHA-256');
  response.end();
});
server.listen(0, '127.0.0.1', async () => {
  for (const [name, get] of Object.entries(clients)) {
    given = [];
    const url = `http://127.0.0.1:${server.address().port}/`;
    await get(url).catch((error) => assert.strictEqual(error.response.status, 401));
    const [, algorithm] = /algorithm="?([^",]*)/.exec(given[1]) || [null, 'none'];
    const { length } = /response="([0-9a-f]*)"/.exec(given[1])[1];
    console.log(`${name}: ${given.length} requests, algorithm ${algorithm}, hash of ${length} digits`);
    assert.deepStrictEqual([given.length, algorithm, length], [2, name === 'needle' ? 'none' : 'MD5', 32]);
  }
  server.close();
  process.exit();
});
NODE
node "$work/test.cjs"
# Seen:
#   digest-fetch: 2 requests, algorithm MD5, hash of 32 digits
#   @mhoc/axios-digest-auth: 2 requests, algorithm MD5, hash of 32 digits
#   @lukesthl/ts-axios-digest-auth: 2 requests, algorithm MD5, hash of 32 digits
#   needle: 2 requests, algorithm none, hash of 32 digits
