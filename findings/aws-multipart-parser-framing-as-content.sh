#!/usr/bin/env bash
# aws-multipart-parser puts the closing delimiter, or fields of a part, into the content of a file.
#
# Package: aws-multipart-parser 0.2.1 (npm).
# Guess: a parameter behind `boundary`, such as `charset=utf-8`, changes nothing, and neither does a field
#   of a part that the parser has no use for (RFC 7578 4.8: other fields must be ignored). The file is
#   `hello`.
# What happens: everything behind `boundary=` is taken for the boundary, so the real delimiter becomes the
#   end of the file. A part's content is looked for at a fixed place behind `content-type`, so a field after
#   that one becomes the beginning of the file. No error in either case.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" aws-multipart-parser@0.2.1
cat > "$work/test.cjs" <<'NODE'
const assert = require('node:assert');
const { parse } = require('aws-multipart-parser');

function file(type, fields) {
  const body = [
    '--limit', 'Content-Disposition: form-data; name="a"; filename="f.bin"', ...fields, '', 'hello',
    '--limit--', '',
  ].join('\r\n');
  const event = { headers: { 'content-type': type }, body, isBase64Encoded: false };
  return parse(event, true).a.content.toString();
}

const octets = 'Content-Type: application/octet-stream';
const cases = [
  ['multipart/form-data; boundary=limit', [octets], 'hello'],
  ['multipart/form-data; boundary=limit; charset=utf-8', [octets], 'hello\r\n--limit'],
  ['multipart/form-data; boundary=limit', [octets, 'Content-Length: 5'], 'ntent-Length: 5\r\n\r\nhello'],
];
for (const [type, fields, expected] of cases) {
  const content = file(type, fields);
  console.log(`${type}, ${fields.length} field(s) behind the name: ${JSON.stringify(content)}`);
  assert.strictEqual(content, expected);
}
NODE
node "$work/test.cjs"
# Seen:
#   multipart/form-data; boundary=limit, 1 field(s) behind the name: "hello"
#   multipart/form-data; boundary=limit; charset=utf-8, 1 field(s) behind the name: "hello\r\n--limit"
#   multipart/form-data; boundary=limit, 2 field(s) behind the name: "ntent-Length: 5\r\n\r\nhello"
