#!/usr/bin/env bash
# structured-headers writes a decimal that it cannot read itself: `1.`
#
# Packages: structured-headers 2.1.0; @svta/cml-structured-field-values 1.1.6 beside it (npm).
# Guess: a decimal is rounded to three digits, and one whose digits are then all zero is written `1.0` (RFC
#   9651 4.1.5, step 9). What a library writes, it reads.
# What happens: 1.0004 becomes `1.` and 0.00005 becomes `0.`, which every parser must refuse (4.2.4), and
#   its own does. Whoever measures a duration and sends it meets this once in about a thousand times.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" \
    structured-headers@2.1.0 @svta/cml-structured-field-values@1.1.6
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import { parseItem, serializeItem } from 'structured-headers';
import { encodeSfItem } from '@svta/cml-structured-field-values';

const cases = [[1.25, '1.25', '1.25'], [1.0004, '1.', '1.0'], [0.00005, '0.', '0.0']];
for (const [number, expected, right] of cases) {
  const written = serializeItem(number);
  let read;
  try {
    [read] = parseItem(written);
  } catch (error) {
    read = error.message.slice(0, 47);
  }
  console.log(`${number}: ${written}, the other package: ${encodeSfItem(number)}, read again: ${read}`);
  assert.strictEqual(written, expected);
  assert.strictEqual(typeof read, expected.endsWith('.') ? 'string' : 'number');
  assert.strictEqual(encodeSfItem(number), right);
}
NODE
node "$work/test.mjs"
# Seen:
#   1.25: 1.25, the other package: 1.25, read again: 1.25
#   1.0004: 1., the other package: 1.0, read again: Parse error: Decimal cannot end on a period at 
#   0.00005: 0., the other package: 0.0, read again: Parse error: Decimal cannot end on a period at 
