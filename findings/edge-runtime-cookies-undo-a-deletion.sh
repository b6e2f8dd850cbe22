#!/usr/bin/env bash
# @edge-runtime/cookies turns the deletion of one cookie into a cookie, when another is set.
#
# Package: @edge-runtime/cookies 6.0.0 (npm).
# Guess: `ResponseCookies` around the fields of a response adds a cookie and leaves the others as they are:
#   `session=; Path=/; Max-Age=0`, with which the server logs the user out, is still there.
# What happens: all fields are parsed and written anew, and Max-Age=0 is lost on the way, since 0 counts as
#   "not there". What remains sets a session cookie. `id=50%41` becomes `id=50A`: values are decoded, too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" @edge-runtime/cookies@6.0.0
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import { ResponseCookies } from '@edge-runtime/cookies';

const headers = new Headers();
headers.append('set-cookie', 'session=old; Path=/; Max-Age=0');
headers.append('set-cookie', 'id=50%41; Path=/; Max-Age=60');
new ResponseCookies(headers).set('theme', 'dark');
const seen = headers.getSetCookie().map((field) => field.replace(/Expires=[^;]*; /, 'Expires=...; '));
console.log(seen.join('\n'));
assert.strictEqual(seen[0], 'session=old; Path=/');
assert.match(seen[1], /^id=50A; Path=\/;.* Max-Age=60$/);
assert.strictEqual(seen[2], 'theme=dark; Path=/');
NODE
node "$work/test.mjs"
# Seen:
#   session=old; Path=/
#   id=50A; Path=/; Max-Age=60
#   theme=dark; Path=/
