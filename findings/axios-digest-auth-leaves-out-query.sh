#!/usr/bin/env bash
# Digest authentication for axios signs the path without its query, and cuts a realm at a comma.
#
# Packages: @mhoc/axios-digest-auth 0.8.0, @lukesthl/ts-axios-digest-auth 1.0.5; digest-fetch 3.1.1 beside
#   them (npm).
# Guess: `uri` in the response to a challenge is the request target with its query (RFC 7616 3.4), and a
#   realm is a quoted string, in which a comma or an equals sign is an ordinary character. All three get a
#   page.
# What happens: with a query, `uri` is the path alone, so a server that compares it with the target refuses.
#   With the realm "a, b" the answer is for "a". The user is told that the password is wrong: 401.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" axios@1.21.1 \
    @mhoc/axios-digest-auth@0.8.0 @lukesthl/ts-axios-digest-auth@1.0.5 digest-fetch@3.1.1
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import { createHash } from 'node:crypto';
import http from 'node:http';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const mhoc = require('@mhoc/axios-digest-auth').default;
const lukesthl = require('@lukesthl/ts-axios-digest-auth').AxiosDigestAuth;
const digestFetch = require('digest-fetch');
const DigestFetch = digestFetch.default || digestFetch;
const md5 = (text) => createHash('md5').update(text).digest('hex');
const targets = { '/page': 'r', '/page?a=b': 'r', '/comma': 'a, b' };
const user = { username: 'user', password: 'secret' };
const clients = {
  'digest-fetch': (url) => new DigestFetch(user.username, user.password).fetch(url),
  '@mhoc/axios-digest-auth': (url) => new mhoc(user).request({ method: 'GET', url, headers: {} }),
  '@lukesthl/ts-axios-digest-auth': (url) => new lukesthl(user).request({ method: 'GET', url }),
};

let told;
const server = http.createServer((request, response) => {
  const realm = targets[request.url];
  const given = {};
  const field = request.headers.authorization || '';
  for (const [, name, quoted, token] of field.matchAll(/(\w+)=(?:"([^"]*)"|([^,]*))/g)) {
    given[name] = quoted ?? token;
  }
  told = { uri: given.uri, realm: given.realm };
  const ha1 = md5(`user:${realm}:secret`);
  const ha2 = md5(`GET:${request.url}`);
  const right = md5([ha1, 'n', given.nc, given.cnonce, 'auth', ha2].join(':'));
  if (given.response !== right) {
    response.statusCode = 401;
    response.setHeader('www-authenticate', `Digest realm="${realm}", nonce="n", qop="auth"`);
  }
  response.end();
});
server.listen(0, '127.0.0.1', async () => {
  for (const [name, get] of Object.entries(clients)) {
    for (const target of Object.keys(targets)) {
      const url = `http://127.0.0.1:${server.address().port}${target}`;
      const { status } = await get(url).catch((error) => error.response);
      console.log(`${name}, ${target}: ${status}, told ${JSON.stringify(told)}`);
      const isRight = name === 'digest-fetch' || target === '/page';
      assert.strictEqual(status, isRight ? 200 : 401);
      if (!isRight) assert(target === '/comma' ? told.realm === 'a' : told.uri === '/page');
    }
  }
  server.close();
  process.exit();
});
NODE
node "$work/test.mjs"
# Seen:
#   digest-fetch, /page: 200, told {"uri":"/page","realm":"r"}
#   digest-fetch, /page?a=b: 200, told {"uri":"/page?a=b","realm":"r"}
#   digest-fetch, /comma: 200, told {"uri":"/comma","realm":"a, b"}
#   @mhoc/axios-digest-auth, /page: 200, told {"uri":"/page","realm":"r"}
#   @mhoc/axios-digest-auth, /page?a=b: 401, told {"uri":"/page","realm":"r"}
#   @mhoc/axios-digest-auth, /comma: 401, told {"uri":"/comma","realm":"a"}
#   @lukesthl/ts-axios-digest-auth, /page: 200, told {"uri":"/page","realm":"r"}
#   @lukesthl/ts-axios-digest-auth, /page?a=b: 401, told {"uri":"/page","realm":"r"}
#   @lukesthl/ts-axios-digest-auth, /comma: 401, told {"uri":"/comma","realm":"a"}
