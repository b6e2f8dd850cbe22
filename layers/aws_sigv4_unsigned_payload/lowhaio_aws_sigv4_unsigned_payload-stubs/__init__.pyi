# Made of lowhaio_aws_sigv4_unsigned_payload.py by .ci/stubs.py.

from collections.abc import Iterable
from lowhaio_aws_sigv4 import AnyRequest, Credentials, aws_sigv4_headers, object_url

__all__ = ['aws_sigv4_headers', 'object_url', 'signed']

def signed(
    request: AnyRequest,
    credentials: Credentials,
    service: str,
    region: str,
    *,
    origin: str | Iterable[str] | None = None,
) -> AnyRequest: ...
