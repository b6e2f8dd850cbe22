#!/usr/bin/env bash
# The WebSocket package of Go's x/net gives a program each fragment of a message as a message of its own.
#
# Packages: golang-golang-x-net-dev 1:0.7.0+dfsg-1 and golang-1.19 1.19.8-2 of Debian 12, which the script
#   needs.
# Guess: `websocket.Message.Receive` returns whole messages, and puts fragments together, as every receiver
#   has to understand them (RFC 6455 5.4). A sender is free to cut a message wherever it likes.
# What happens: the first fragment is returned as a text of its own, and so is the next one. Nothing tells
#   that they belong together, and there is no error. Whoever sends JSON in two fragments sends two texts
#   that are no JSON.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$work/archives/partial" "$work/program"
apt-get install --download-only --reinstall --no-install-recommends -qq -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root -o Dir::Cache::Archives="$work/archives" \
    golang-1.19-go=1.19.8-2 golang-1.19-src=1.19.8-2 golang-golang-x-net-dev=1:0.7.0+dfsg-1 >/dev/null
for package in "$work"/archives/golang*.deb; do dpkg -x "$package" "$work/root"; done
# The packages link lib and share to each other with paths below /usr.
mkdir "$work/go"
cp -r "$work/root/usr/lib/go-1.19/bin" "$work/root/usr/lib/go-1.19/pkg" "$work/go/"
rm -rf "$work/go/pkg/include"
cp -r "$work/root/usr/share/go-1.19/pkg/include" "$work/go/pkg/"
cp -r "$work/root/usr/share/go-1.19/src" "$work/go/src"
cat > "$work/program/server.go" <<'GO'
package main

import (
	"fmt"
	"net"
	"net/http"

	"golang.org/x/net/websocket"
)

func answer(ws *websocket.Conn) {
	for {
		var message string
		if websocket.Message.Receive(ws, &message) != nil {
			return
		}
		websocket.Message.Send(ws, "got "+message)
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, websocket.Handler(answer))
}
GO
export GOROOT="$work/go" GOPATH="$work/root/usr/share/gocode" GO111MODULE=off GOFLAGS= CGO_ENABLED=0 \
    GOCACHE="$work/cache" GOTOOLCHAIN=local HOME="$work"
(cd "$work/program" && "$work/go/bin/go" build -o server server.go)
python3 - "$work/program/server" <<'PYTHON'
import socket
import subprocess
import sys


def frame(first, text):
    """A frame of a client, with a mask of zeros."""
    return bytes((first, 0x80 | len(text))) + bytes(4) + text


with subprocess.Popen([sys.argv[1]], stdout=subprocess.PIPE, text=True) as process:
    try:
        port = int(process.stdout.readline())
        with socket.create_connection(('127.0.0.1', port), 10) as sock, sock.makefile('rb') as received:
            def message():
                head = received.read(2)
                return received.read(head[1]).decode()

            sock.sendall(b'GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n'
                         b'Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n'
                         b'Sec-WebSocket-Version: 13\r\nOrigin: http://127.0.0.1\r\n\r\n' % port)
            assert b' 101 ' in received.readline()
            while received.readline() != b'\r\n':
                pass
            sock.sendall(frame(0x81, b'hello world'))
            whole = message()
            print('one frame:', repr(whole))
            sock.sendall(frame(0x01, b'hello ') + frame(0x80, b'world'))
            parts = [message(), message()]
            print('two fragments:', *map(repr, parts))
    finally:
        process.kill()
assert whole == 'got hello world'
assert parts == ['got hello ', 'got world']
PYTHON
# Seen:
#   one frame: 'got hello world'
#   two fragments: 'got hello ' 'got world'
