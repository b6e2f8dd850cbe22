#!/usr/bin/env bash
# content-disposition-parser cuts a quoted file name at a semicolon, and leaves escapes in it.
#
# Packages: content-disposition-parser 1.0.2; content-disposition 3.0.0 beside it (npm).
# Guess: in a quoted file name a semicolon is an ordinary character, and `\"` is a quote (RFC 6266 4.1, RFC
#   9110 5.6.4); `filename*` may be in ISO-8859-1 too, as many old servers have it (RFC 5987 3.2).
# What happens: `"report; final.pdf"` is stored as `report`, without its extension; the backslashes stay in
#   the name; `iso-8859-1''%E9.txt` is not decoded. No error in any case.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" \
    content-disposition-parser@1.0.2 content-disposition@3.0.0
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import parser from 'content-disposition-parser';
import * as other from 'content-disposition';

const parse = parser.default || parser;
for (const [field, expected, right] of [
  ['attachment; filename="report.pdf"', 'report.pdf', 'report.pdf'],
  ['attachment; filename="report; final.pdf"', 'report', 'report; final.pdf'],
  ['attachment; filename="a \\"b\\".txt"', 'a \\"b\\".txt', 'a "b".txt'],
  ["attachment; filename*=iso-8859-1''%E9.txt", '%E9.txt', '\u00e9.txt'],
]) {
  const seen = [parse(field).filename, other.parse(field).parameters.filename];
  console.log(`${field}: ${seen[0]}, the other package: ${seen[1]}`);
  assert.deepStrictEqual(seen, [expected, right]);
}
NODE
node "$work/test.mjs"
# Seen:
#   attachment; filename="report.pdf": report.pdf, the other package: report.pdf
#   attachment; filename="report; final.pdf": report, the other package: report; final.pdf
#   attachment; filename="a \"b\".txt": a \"b\".txt, the other package: a "b".txt
#   attachment; filename*=iso-8859-1''%E9.txt: %E9.txt, the other package: é.txt
