#!/usr/bin/env bash
# sirv answers "the last three bytes" with the first four, and lines with bytes.
#
# Package: sirv 3.0.2 (npm), the server of files behind the previews and adapters of several web frameworks.
# Guess: `bytes=-3` is the last three bytes (RFC 9110 14.1.2), a `Range` of a unit that the server does not know is
#   ignored (14.2), and of several ranges it sends all or the whole file.
# What happens: `-3` is taken for `0-3`, the lines 2 to 4 are the bytes 0 to 4, and of several ranges only the first
#   comes. Each is a 206 whose content-range is right for what was sent, so only who compares it with what was asked
#   for sees it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" sirv@3.0.2 2>/dev/null
mkdir "$work/files"
printf 0123456789 > "$work/files/file"
cat > "$work/test.cjs" <<'NODE'
const assert = require('node:assert');
const http = require('node:http');
const sirv = require('sirv');

const server = http.createServer(sirv(process.argv[2]));
server.listen(0, '127.0.0.1', async () => {
  for (const [range, expected] of [
    ['bytes=2-4', [206, 'bytes 2-4/10', '234']],
    ['bytes=-3', [206, 'bytes 0-3/10', '0123']],
    ['lines=2-4', [206, 'bytes 0-4/10', '01234']],
    ['bytes=0-1,8-9', [206, 'bytes 0-1/10', '01']],
  ]) {
    const response = await fetch(`http://127.0.0.1:${server.address().port}/file`, { headers: { range } });
    const seen = [response.status, response.headers.get('content-range'), await response.text()];
    console.log(`${range}: ${JSON.stringify(seen)}`);
    assert.deepStrictEqual(seen, expected);
  }
  process.exit();
});
NODE
node "$work/test.cjs" "$work/files"
# Seen:
#   bytes=2-4: [206,"bytes 2-4/10","234"]
#   bytes=-3: [206,"bytes 0-3/10","0123"]
#   lines=2-4: [206,"bytes 0-4/10","01234"]
#   bytes=0-1,8-9: [206,"bytes 0-1/10","01"]
