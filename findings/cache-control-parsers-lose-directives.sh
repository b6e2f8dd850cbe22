#!/usr/bin/env bash
# parse-cache-control finds nothing if a comma is too many; cache-control-parser loses quoted numbers.
#
# Packages: parse-cache-control 1.0.1, cache-control-parser 2.2.0; @tusbar/cache-control 3.0.1 beside them
#   (npm).
# Guess: empty elements of a list are ignored (RFC 9110 5.6.1.2), names of directives are case-insensitive,
#   and `max-age="10"` is to be understood as `max-age=10` (RFC 9111 5.2). All three are fresh for ten
#   seconds.
# What happens: parse-cache-control returns null for `no-store,`, as if the field were no Cache-Control at
#   all, and a string under `MAX-AGE`; cache-control-parser returns an object without max-age for
#   `max-age="10"`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" \
    parse-cache-control@1.0.1 cache-control-parser@2.2.0 @tusbar/cache-control@3.0.1
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import parseCacheControl from 'parse-cache-control';
import cacheControlParser from 'cache-control-parser';
import { parse as tusbar } from '@tusbar/cache-control';

const expected = {
  'max-age=10, no-store,': [null, { 'max-age': 10, 'no-store': true }],
  'MAX-AGE=10': [{ 'MAX-AGE': '10' }, { 'max-age': 10 }],
  'max-age="10"': [{ 'max-age': 10 }, {}],
};
for (const [field, [first, second]] of Object.entries(expected)) {
  const seen = [parseCacheControl(field), cacheControlParser.parse(field)];
  console.log(`${field}: ${JSON.stringify(seen)}; @tusbar/cache-control: max-age ${tusbar(field).maxAge}`);
  assert.deepEqual(seen[0], first);
  assert.deepEqual(seen[1], second);
  assert.strictEqual(tusbar(field).maxAge, 10);
}
NODE
node "$work/test.mjs"
# Seen:
#   max-age=10, no-store,: [null,{"max-age":10,"no-store":true}]; @tusbar/cache-control: max-age 10
#   MAX-AGE=10: [{"MAX-AGE":"10"},{"max-age":10}]; @tusbar/cache-control: max-age 10
#   max-age="10": [{"max-age":10},{}]; @tusbar/cache-control: max-age 10
