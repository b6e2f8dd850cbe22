#!/usr/bin/env bash
# linkheader-parser drops `rel=next`, and requests cuts the address of the next page at a semicolon.
#
# Packages: linkheader-parser 0.6, requests 2.34.2.
# Guess: a parameter of a link is a token or a quoted string (RFC 8288 3), so `rel=next` is `rel="next"`;
#   and what is between `<` and `>` is an address, in which a semicolon is an ordinary character.
# What happens: linkheader-parser finds no link in `</2>; rel=next`, and puts parts of a query among the
#   parameters of the link. In requests, the next page behind `</items;page=2>; rel="next"` is `/items`: the
#   first one, again and again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    linkheader-parser==0.6 requests==2.34.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import linkheader_parser
import requests

for field, first, second in (
    ('</2>; rel="next"', {'next': {'url': '/2', 'rel': 'next'}}, {'next': {'url': '/2', 'rel': 'next'}}),
    ('</2>; rel=next', {}, {'next': {'url': '/2', 'rel': 'next'}}),
    ('</?page=2>; rel="next"', {'next': {'url': '/?page=2', 'page': '2', 'rel': 'next'}},
     {'next': {'url': '/?page=2', 'rel': 'next'}}),
    ('</items;page=2>; rel="next"', {'next': {'url': '/items;page=2', 'rel': 'next'}},
     {'next': {'url': '/items', 'page': '2>', 'rel': 'next'}}),
):
    response = requests.Response()
    response.headers['link'] = field
    seen = dict(linkheader_parser.parse(field)), response.links
    print(field)
    print('   linkheader-parser:', seen[0])
    print('   requests:', seen[1])
    assert seen == (first, second)
PYTHON
# Seen:
#   </2>; rel="next"
#      linkheader-parser: {'next': {'url': '/2', 'rel': 'next'}}
#      requests: {'next': {'url': '/2', 'rel': 'next'}}
#   </2>; rel=next
#      linkheader-parser: {}
#      requests: {'next': {'url': '/2', 'rel': 'next'}}
#   </?page=2>; rel="next"
#      linkheader-parser: {'next': {'url': '/?page=2', 'page': '2', 'rel': 'next'}}
#      requests: {'next': {'url': '/?page=2', 'rel': 'next'}}
#   </items;page=2>; rel="next"
#      linkheader-parser: {'next': {'url': '/items;page=2', 'rel': 'next'}}
#      requests: {'next': {'url': '/items', 'page': '2>', 'rel': 'next'}}
