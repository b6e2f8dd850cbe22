"""What is a secret, and is replaced where it would be shown.

Files of timings are passed around. So what looks like a secret is replaced, and what is kept has
to be asked for. A path that is a secret, and a name that nobody knows, can not be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from lowhaio import Fields

REDACTED = 'REDACTED'

SECRET_FIELD = re.compile(
    r'authorization|cookie|token|secret|passw|api-?key|credential|signature|session|assertion'
    r'|(?:^|[-_])(?:key|auth|jwt)(?:$|[-_])', re.IGNORECASE)

SECRET_PARAMETER = re.compile(
    r'signature|credential|token|secret|passw|api[-_]?key|access[-_]?key|auth|session|jwt|assertion'
    r'|^(?:sig|key|code|state|pwd|policy|hmac|hash|key-pair-id|x-amz-sign.*)$', re.IGNORECASE)

PARAMETER = re.compile(r'(?<=[?&#;])([^=&#;?\s"\'<>]+)=')
# That of a secret has all that can be a part of it.
VALUE = re.compile(r'[^&#\s"<>]*')
USERINFO = re.compile(r'(?<=//)[^/?#@\s"<>]+@')


def redacted(text: str, with_secrets: bool = False) -> str:
    """A text, in which URLs have no userinfo, and no values of parameters that are secrets."""
    if with_secrets:
        return text
    return USERINFO.sub(f'{REDACTED}@', ''.join(pieces_of(text)))


def pieces_of(text: str) -> Iterator[str]:
    """The pieces of a text, with those that are values of secrets replaced."""
    end = 0
    for match in PARAMETER.finditer(text):
        if match.start() >= end and SECRET_PARAMETER.search(unquote(match[1])):
            yield text[end:match.end()]
            end = VALUE.match(text, match.end()).end()  # type: ignore[union-attr]  # it matches
            if end > match.end():
                yield REDACTED
    yield text[end:]


def shown_fields(fields: Fields, with_secrets: bool) -> list[tuple[str, str]]:
    """The fields as text, with secrets only if they are wanted."""
    pairs = ((name.decode('latin-1'), value.decode('latin-1')) for name, value in fields)
    return [(name, REDACTED if not with_secrets and SECRET_FIELD.search(name)
             else redacted(value, with_secrets)) for name, value in pairs]
