#!/usr/bin/env bash
# parse-link-header drops a link whose parameter is written `Rel`, and takes the last of two `rel`.
#
# Packages: parse-link-header 2.0.0, @web3-storage/parse-link-header 3.1.0; http-link-header 1.1.4 beside
#   them (npm).
# Guess: names of parameters are case-insensitive, and of several `rel` in one link all but the first are
#   ignored (RFC 8288 3.3). So both `Rel="next"` and `rel="next"; rel="prev"` are a link to the next page.
# What happens: the first is no link at all, so a program that follows pages believes that it is on the last
#   one. The second is a link to the previous page.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" \
    parse-link-header@2.0.0 @web3-storage/parse-link-header@3.1.0 http-link-header@1.1.4
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import httpLinkHeader from 'http-link-header';
import parseLinkHeader from 'parse-link-header';
import { parseLinkHeader as web3 } from '@web3-storage/parse-link-header';

const clients = {
  'http-link-header': [
    (value) => httpLinkHeader.parse(value).refs.map(({ rel }) => rel), [['next'], ['next']],
  ],
  'parse-link-header': [(value) => Object.keys(parseLinkHeader(value)), [[], ['prev']]],
  '@web3-storage/parse-link-header': [(value) => Object.keys(web3(value)), [[], ['prev']]],
};
for (const [name, [parse, expected]] of Object.entries(clients)) {
  const seen = ['</page/2>; Rel="next"', '</page/2>; rel="next"; rel="prev"'].map(parse);
  console.log(`${name}: ${JSON.stringify(seen)}`);
  assert.deepStrictEqual(seen, expected);
}
NODE
node "$work/test.mjs"
# Seen:
#   http-link-header: [["next"],["next"]]
#   parse-link-header: [[],["prev"]]
#   @web3-storage/parse-link-header: [[],["prev"]]
