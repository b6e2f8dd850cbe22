#!/usr/bin/env bash
# dns-packet asks for records of type 0 when it is told a type that it does not know, such as HTTPS.
#
# Package: dns-packet 5.6.1 (npm).
# Guess: a query for type HTTPS (RFC 9460, number 65) is one, or it is an error because the package does not
#   know the type. A number can be given as `TYPE65` (RFC 3597 5).
# What happens: any unknown word becomes type 0, which is reserved, without an error; so do `TYPE65` and a
#   typing error like `AAA`. `UNKNOWN_65` is what works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" dns-packet@5.6.1
cat > "$work/test.cjs" <<'NODE'
const assert = require('node:assert');
const packet = require('dns-packet');

for (const [type, expected] of [
  ['AAAA', 28], ['UNKNOWN_65', 65], ['HTTPS', 0], ['SVCB', 0], ['TYPE65', 0], ['AAA', 0],
]) {
  const query = packet.encode({ type: 'query', id: 1, questions: [{ type, name: 'a.example' }] });
  const number = query.readUInt16BE(query.length - 4);
  console.log(`${type}: type ${number} in the query`);
  assert.strictEqual(number, expected);
}
NODE
node "$work/test.cjs"
# Seen:
#   AAAA: type 28 in the query
#   UNKNOWN_65: type 65 in the query
#   HTTPS: type 0 in the query
#   SVCB: type 0 in the query
#   TYPE65: type 0 in the query
#   AAA: type 0 in the query
