#!/usr/bin/env bash
# With Flask-HTTPAuth's digest, a second 401 in a session makes the first one useless.
#
# Packages: Flask-HTTPAuth 4.8.1, Flask 3.1.3, Werkzeug 3.1.9.
# Guess: a client that makes two requests at once and gets two challenges may answer both: each nonce is good
#   until it expires, and one that is not gets `stale=true`, so that the client tries again without asking the
#   user (RFC 7616 3.3, 3.4).
# What happens: a session has room for one nonce. The answer to the older challenge is refused, without
#   `stale=true`, as a wrong password would be.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    flask-httpauth==4.8.1 flask==3.1.3 werkzeug==3.1.9 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import hashlib
import re

from flask import Flask
from flask_httpauth import HTTPDigestAuth

app = Flask('app')
app.secret_key = 'a key'
auth = HTTPDigestAuth()
auth.get_password(lambda user: 'password')


@app.get('/')
@auth.login_required
def page():
    return 'page'


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


def answer(challenge):
    """RFC 7616 3.4.1, with qop=auth."""
    given = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    first = md5(f'user:{given["realm"]}:password')
    proof = md5(f'{first}:{given["nonce"]}:00000001:c:auth:{md5("GET:/")}')
    return {'Authorization': f'Digest username="user", realm="{given["realm"]}", '
                             f'nonce="{given["nonce"]}", opaque="{given["opaque"]}", uri="/", qop=auth, '
                             f'nc=00000001, cnonce="c", response="{proof}"'}


client = app.test_client()  # It keeps the cookie of the session.
alone = client.get('/').headers['WWW-Authenticate']
print('one challenge, answered:', client.get('/', headers=answer(alone)).status_code)

older, newer = (client.get('/').headers['WWW-Authenticate'] for _ in range(2))
refused = client.get('/', headers=answer(older))
stale = 'stale=true' in refused.headers['WWW-Authenticate'].lower().replace('"', '')
print('the older of two, answered:', refused.status_code, 'stale=true:', stale)
assert (refused.status_code, stale) == (401, False)
PYTHON
# Seen:
#   one challenge, answered: 200
#   the older of two, answered: 401 stale=true: False
