#!/usr/bin/env bash
# url-template sends an empty list as one empty value.
#
# Packages: url-template 3.1.1, es6-url-template 3.0.2; uri-templates 0.2.0 beside them (npm).
# Guess: a list without members is an undefined variable (RFC 6570 2.3), so `/items{?id}` with no id is
#   `/items`, as it is with an undefined `id`, and with the explode modifier.
# What happens: `/items?id=`: the server sees one id, the empty string. `{?id*}` is right. An object without
#   members is treated alike.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" \
    url-template@3.1.1 es6-url-template@3.0.2 uri-templates@0.2.0
cat > "$work/test.mjs" <<'NODE'
import assert from 'node:assert';
import { createRequire } from 'node:module';
import { parseTemplate } from 'url-template';

const require = createRequire(import.meta.url);
const es6 = require('es6-url-template');
const Es6 = es6.default || es6;
const uriTemplates = require('uri-templates');
const packages = {
  'uri-templates': [(template, values) => uriTemplates(template).fill(values), '/items'],
  'url-template': [(template, values) => parseTemplate(template).expand(values), '/items?id='],
  'es6-url-template': [(template, values) => new Es6(template).expand(values), '/items?id='],
};
for (const [name, [expand, expected]] of Object.entries(packages)) {
  const seen = [[], {}].map((id) => expand('/items{?id}', { id }));
  console.log(`${name}: ${seen}; exploded: ${expand('/items{?id*}', { id: [] })}`);
  assert.deepStrictEqual(seen, [expected, expected]);
  assert.strictEqual(expand('/items{?id*}', { id: [] }), '/items');
  assert.strictEqual(expand('/items{?id}', {}), '/items');
}
NODE
node "$work/test.mjs"
# Seen:
#   uri-templates: /items,/items; exploded: /items
#   url-template: /items?id=,/items?id=; exploded: /items
#   es6-url-template: /items?id=,/items?id=; exploded: /items
