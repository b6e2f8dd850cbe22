#!/usr/bin/env bash
# opendal takes the spaces off both ends of an object's key, and so overwrites another object.
#
# Package: opendal 0.47.12, against moto 5.2.5; listed with boto3 1.44.8.
# Guess: a path of the `s3` service is the object's key, percent-encoded for the URL. `a` and `a ` are two
#   objects in S3, as they are for boto3.
# What happens: white space at either end of the path is dropped before the request, without an error, and
#   empty segments are joined: `write('a ')` stores, and `read('a ')` reads, the object `a`. One that
#   another program stored as `a ` cannot be reached.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    opendal==0.47.12 'moto[server]==5.2.5' boto3==1.44.8 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON' 2>/dev/null
import boto3
import opendal
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
url = 'http://{}:{}'.format(*server.get_host_and_port())
client = boto3.client('s3', endpoint_url=url, region_name='us-east-1',
                      aws_access_key_id='key', aws_secret_access_key='secret')
client.create_bucket(Bucket='bucket')
operator = opendal.Operator('s3', bucket='bucket', endpoint=url, region='us-east-1',
                            access_key_id='key', secret_access_key='secret')


def objects():
    found = client.list_objects_v2(Bucket='bucket').get('Contents', [])
    keys = [item['Key'] for item in found]
    return {key: client.get_object(Bucket='bucket', Key=key)['Body'].read() for key in keys}


for key in ('a', 'a ', ' a'):
    client.put_object(Bucket='bucket', Key=key, Body=b'boto3')
print('boto3:', objects())
assert sorted(objects()) == [' a', 'a', 'a ']

for key in ('a', 'a ', ' a', 'b//c'):
    operator.write(key, f'opendal, as {key!r}'.encode())
print('opendal:', objects())
assert objects() == {' a': b'boto3', 'a': b"opendal, as ' a'", 'a ': b'boto3',
                     'b/c': b"opendal, as 'b//c'"}
assert bytes(operator.read('a ')) == b"opendal, as ' a'"
server.stop()
PYTHON
# Seen:
#   boto3: {' a': b'boto3', 'a': b'boto3', 'a ': b'boto3'}
#   opendal: {' a': b'boto3', 'a': b"opendal, as ' a'", 'a ': b'boto3', 'b/c': b"opendal, as 'b//c'"}
