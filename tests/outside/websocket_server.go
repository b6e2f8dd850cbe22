// The servers of websocket_apps.py that are written in Go, with gorilla/websocket or x/net/websocket

package main

import (
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	gorilla "github.com/gorilla/websocket"
	xnet "golang.org/x/net/websocket"
)

var (
	largest      int
	pingInterval time.Duration
	pingTimeout  time.Duration
	lastCode     int64
)

func main() {
	args := os.Args[1:]
	fd, largestArg, intervalArg, timeoutArg := number(args[1]), args[2], args[3], args[4]
	largest = number(largestArg)
	pingInterval = time.Duration(number(intervalArg)) * time.Millisecond
	pingTimeout = time.Duration(number(timeoutArg)) * time.Millisecond
	listener, err := net.FileListener(os.NewFile(uintptr(fd), "listening"))
	if err != nil {
		log.Fatal(err)
	}
	handler := map[string]http.HandlerFunc{"gorilla": serveGorilla, "x-net": serveXNet}[args[0]]
	if len(args) > 5 {
		log.Fatal(http.ServeTLS(listener, handler, args[5], args[6]))
	}
	log.Fatal(http.Serve(listener, handler))
}

func number(arg string) int {
	value, err := strconv.Atoi(arg)
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// Calls ping again and again, until it fails or the returned function is called
func startPinging(ping func() error) func() {
	stopped := make(chan struct{})
	go func() {
		ticker := time.NewTicker(pingInterval)
		defer ticker.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-ticker.C:
				if ping() != nil {
					return
				}
			}
		}
	}()
	return func() { close(stopped) }
}

func serveGorilla(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/refuse" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	upgrader := gorilla.Upgrader{Subprotocols: []string{"b"}, EnableCompression: true}
	if r.URL.Path == "/fragments" {
		// It sends a frame when its buffer is full, so each write is one or more
		upgrader.WriteBufferSize = 1
	}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	ws.SetReadLimit(int64(largest))
	ws.SetPongHandler(func(string) error {
		return ws.SetReadDeadline(time.Now().Add(pingTimeout))
	})
	defer startPinging(func() error {
		return ws.WriteControl(gorilla.PingMessage, nil, time.Now().Add(pingTimeout))
	})()
	if r.URL.Path == "/code" {
		code := strconv.FormatInt(atomic.LoadInt64(&lastCode), 10)
		if ws.WriteMessage(gorilla.TextMessage, []byte(code)) != nil {
			return
		}
	}
	for {
		kind, message, err := ws.ReadMessage()
		var closed *gorilla.CloseError
		if errors.As(err, &closed) && closed.Code >= 3000 {
			atomic.StoreInt64(&lastCode, int64(closed.Code))
		}
		if err != nil {
			return
		}
		switch r.URL.Path {
		case "/close":
			err = ws.WriteControl(
				gorilla.CloseMessage, gorilla.FormatCloseMessage(4001, "bye"),
				time.Now().Add(pingTimeout))
		case "/fragments":
			err = sendFragments(ws, kind, message)
		default:
			err = ws.WriteMessage(kind, message)
		}
		if err != nil {
			return
		}
	}
}

func sendFragments(ws *gorilla.Conn, kind int, message []byte) error {
	writer, err := ws.NextWriter(kind)
	if err != nil {
		return err
	}
	third := len(message) / 3
	for _, part := range [][]byte{message[:third], message[third : 2*third], message[2*third:]} {
		if _, err := writer.Write(part); err != nil {
			return err
		}
	}
	return writer.Close()
}

// A frame of x/net/websocket, which leaves text, binary, ping and close to a codec
type frame struct {
	kind byte
	data []byte
}

var frames = xnet.Codec{
	Marshal: func(value interface{}) ([]byte, byte, error) {
		sent := value.(frame)
		return sent.data, sent.kind, nil
	},
	Unmarshal: func(data []byte, kind byte, value interface{}) error {
		*value.(*frame) = frame{kind, data}
		return nil
	},
}

// It tells the application neither the code of a close frame nor of pongs
func serveXNet(w http.ResponseWriter, r *http.Request) {
	handshake := func(config *xnet.Config, r *http.Request) error {
		if r.URL.Path == "/refuse" {
			return errors.New("refused")
		}
		offered := config.Protocol
		config.Protocol = nil
		for _, protocol := range offered {
			if protocol == "b" {
				config.Protocol = []string{"b"}
			}
		}
		return nil
	}
	xnet.Server{Handshake: handshake, Handler: handleXNet}.ServeHTTP(w, r)
}

func handleXNet(ws *xnet.Conn) {
	defer ws.Close()
	ws.MaxPayloadBytes = largest
	defer startPinging(func() error { return frames.Send(ws, frame{xnet.PingFrame, nil}) })()
	path := ws.Request().URL.Path
	if path == "/code" && frames.Send(ws, frame{xnet.TextFrame, []byte("0")}) != nil {
		return
	}
	for {
		var received frame
		if frames.Receive(ws, &received) != nil {
			return
		}
		if path == "/close" {
			received = frame{xnet.CloseFrame, []byte("\x0f\xa1bye")}
		}
		if frames.Send(ws, received) != nil {
			return
		}
	}
}
