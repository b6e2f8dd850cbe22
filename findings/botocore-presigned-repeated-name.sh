#!/usr/bin/env bash
# A URL that botocore signs by its query loses the second value of a name, and is signed without it.
#
# Package: botocore 1.44.8.
# Guess: signing a URL adds to its query: `?tag=a&tag=b` comes back with both values, as it does with
#   botocore's signer for the `authorization` field, which signs both and leaves the URL alone.
# What happens: the query is made anew, of the first value of each name. The URL is well signed, so the
#   server accepts it, and answers a request that was not meant. Names without a value get a "=".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check botocore==1.44.8 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

credentials = Credentials('AKID', 'secret')
for auth, expected in ((SigV4Auth, 'tag=a&tag=b&list'), (SigV4QueryAuth, 'tag=a&list=')):
    request = AWSRequest('GET', 'https://api.example.com/items?tag=a&tag=b&list')
    auth(credentials, 'execute-api', 'eu-west-2').add_auth(request)
    query = request.url.partition('?')[2].partition('&X-Amz-Algorithm=')[0]
    print(f'{auth.__name__}: {query}')
    assert query == expected
PYTHON
# Seen:
#   SigV4Auth: tag=a&tag=b&list
#   SigV4QueryAuth: tag=a&list=
