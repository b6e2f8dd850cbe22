#!/usr/bin/env bash
# websockets takes pings between the fragments of a message, but not a close frame.
#
# Packages: websockets 17.4, and wsproto 1.3.2 to compare.
# Guess: a close frame between two fragments ends the connection with its own code, as between two
#   messages: control frames may come in the middle of a fragmented message (RFC 6455 5.4), and a side
#   that has to go away can not always wait for the end of a long message.
# What happens: the peer is told that it broke the protocol: the answer is 1002, "incomplete fragmented
#   message", and the program gets the error of a failure, not that of a normal end, although the peer
#   only went away (1001). wsproto takes the close frame as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    websockets==17.4 wsproto==1.3.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import wsproto
from websockets.client import ClientProtocol
from websockets.protocol import OPEN
from websockets.uri import parse_uri

FRAGMENT = b'\x01\x03abc'
PING = b'\x89\x01p'
CLOSE = b'\x88\x0a' + (1001).to_bytes(2, 'big') + b'shutdown'


def websockets_says(data):
    protocol = ClientProtocol(parse_uri('ws://localhost/'), state=OPEN)
    protocol.receive_data(data)
    sent = protocol.close_sent and (int(protocol.close_sent.code), protocol.close_sent.reason)
    received = protocol.close_rcvd and (int(protocol.close_rcvd.code), protocol.close_rcvd.reason)
    answers = [part for part in protocol.data_to_send() if part]
    return bool(answers), received, sent


def wsproto_says(data):
    connection = wsproto.Connection(wsproto.ConnectionType.CLIENT)
    connection.receive_data(data)
    return [(int(event.code), event.reason) for event in connection.events()
            if isinstance(event, wsproto.events.CloseConnection)]


ping = websockets_says(FRAGMENT + PING)
print('websockets, a ping between fragments: answered', ping[0], 'closed with', ping[2])
assert ping == (True, None, None)
whole = websockets_says(CLOSE)
print('websockets, a close frame alone: received', whole[1], 'sent', whole[2])
assert whole[1] == whole[2] == (1001, 'shutdown')
_, received, sent = websockets_says(FRAGMENT + CLOSE)
print('websockets, a close frame between fragments: received', received, 'sent', sent)
assert received == (1001, 'shutdown')
assert sent == (1002, 'incomplete fragmented message')
compared = wsproto_says(FRAGMENT + CLOSE)
print('wsproto, a close frame between fragments: received', compared)
assert compared == [(1001, 'shutdown')]
PYTHON
# Seen:
#   websockets, a ping between fragments: answered True closed with None
#   websockets, a close frame alone: received (1001, 'shutdown') sent (1001, 'shutdown')
#   websockets, a close frame between fragments: received (1001, 'shutdown') sent (1002, 'incomplete fragmented message')
#   wsproto, a close frame between fragments: received [(1001, 'shutdown')]
