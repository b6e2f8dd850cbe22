"""AWS Signature Version 4 for lowhaio: requests are signed, but their bodies are not.

::

    async def credentials():
        return 'my-access-key-id', 'my-secret-access-key', ()

    request, close = Pool()
    signed_request = signed(request, credentials, 's3', 'eu-west-2')
    code, headers, body = await signed_request(
        b'PUT', object_url('https://my-bucket.s3.eu-west-2.amazonaws.com', 'my key'),
        headers=((b'content-length', b'3'),), body=three_bytes)

All but the body is signed by lowhaio_aws_sigv4. This module only says so in place of the body's
hash.
"""

from __future__ import annotations

from collections.abc import Iterable

from lowhaio_aws_sigv4 import AnyRequest, Credentials, aws_sigv4_headers, object_url
from lowhaio_aws_sigv4 import signed as signed_with

__all__ = ['aws_sigv4_headers', 'object_url', 'signed']


def signed(request: AnyRequest, credentials: Credentials, service: str, region: str,
           *, origin: str | Iterable[str] | None = None) -> AnyRequest:
    """A `request` that signs what it sends, except the body, which is streamed as it comes.

    The arguments and the errors are those of `lowhaio_aws_sigv4.signed`. A body whose length is
    not known must come with a `content-length`.
    """
    return signed_with(request, credentials, service, region, body_hash='UNSIGNED-PAYLOAD',
                       origin=origin)
