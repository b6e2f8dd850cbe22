#!/usr/bin/env bash
# parse-multipart-data fails at a file name with a semicolon, and finds no parts if it is told `Boundary=`.
#
# Package: parse-multipart-data 1.5.0 (npm).
# Guess: a quoted file name may hold a semicolon, a part need not have a content type (RFC 7578 4.4), and
#   names of parameters are case-insensitive (RFC 2045 5.1). Each form below has one part, `hello`.
# What happens: the name is cut at the semicolon and then read as JSON: SyntaxError. A file without content
#   type is a TypeError. For `Boundary=` getBoundary returns '', and parse an empty list: a form without
#   parts, no error.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" parse-multipart-data@1.5.0
cat > "$work/test.cjs" <<'NODE'
const assert = require('node:assert');
const { getBoundary, parse } = require('parse-multipart-data');

function parts(name, type, parameter) {
  const body = [
    '--limit', `Content-Disposition: form-data; name="a"; filename="${name}"`, ...type, '', 'hello',
    '--limit--', '',
  ].join('\r\n');
  try {
    const boundary = getBoundary(`multipart/form-data; ${parameter}=limit`);
    return parse(Buffer.from(body), boundary).map((part) => part.data.toString());
  } catch (error) {
    return error.name;
  }
}

const text = ['Content-Type: text/plain'];
for (const [name, type, parameter, expected] of [
  ['a.txt', text, 'boundary', ['hello']],
  ['a;b.txt', text, 'boundary', 'SyntaxError'],
  ['a.txt', [], 'boundary', 'TypeError'],
  ['a.txt', text, 'Boundary', []],
]) {
  const seen = parts(name, type, parameter);
  console.log(`${name}, ${type.length ? 'a' : 'no'} type, ${parameter}: ${JSON.stringify(seen)}`);
  assert.deepStrictEqual(seen, expected);
}
NODE
node "$work/test.cjs"
# Seen:
#   a.txt, a type, boundary: ["hello"]
#   a;b.txt, a type, boundary: "SyntaxError"
#   a.txt, no type, boundary: "TypeError"
#   a.txt, a type, Boundary: []
