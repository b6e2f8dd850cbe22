// The server of websocket_apps.py that is written with ws, of Node

const fs = require('fs');
const { WebSocketServer } = require('ws');

const [fd, maxPayload, pingInterval, certificate, key] = process.argv.slice(2);
const server = certificate
  ? require('https').createServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) })
  : require('http').createServer();
const accepting = new WebSocketServer({
  noServer: true,
  perMessageDeflate: true,
  maxPayload: Number(maxPayload),
  handleProtocols: (offered) => (offered.has('b') ? 'b' : false),
});
let lastCode = 0;

accepting.on('connection', (ws, request) => {
  let unanswered = 0;
  const pinging = setInterval(() => {
    unanswered += 1;
    if (unanswered > 50) {
      ws.terminate();
    }
    ws.ping();
  }, Number(pingInterval));
  ws.on('pong', () => { unanswered = 0; });
  ws.on('error', () => {});
  ws.on('close', (code) => {
    clearInterval(pinging);
    if (code >= 3000) {
      lastCode = code;
    }
  });
  if (request.url === '/code') {
    ws.send(String(lastCode));
  }
  ws.on('message', (data, isBinary) => {
    if (request.url === '/close') {
      ws.close(4001, 'bye');
    } else if (request.url === '/fragments') {
      const third = Math.floor(data.length / 3);
      ws.send(data.subarray(0, third), { binary: isBinary, fin: false });
      ws.send(data.subarray(third, 2 * third), { fin: false });
      ws.send(data.subarray(2 * third), { fin: true });
    } else {
      ws.send(data, { binary: isBinary });
    }
  });
});

server.on('upgrade', (request, socket, head) => {
  if (request.url === '/refuse') {
    socket.end('HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n');
  } else {
    accepting.handleUpgrade(
      request, socket, head, (ws) => accepting.emit('connection', ws, request));
  }
});
server.on('request', (request, response) => response.end());
server.listen({ fd: Number(fd) });
