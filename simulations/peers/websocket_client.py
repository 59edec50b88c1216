"""A WebSocket client (RFC 6455) on nothing but sockets: HOST PORT PATH. Prints what it did; a broken promise is a traceback."""

import base64
import hashlib
import os
import socket
import struct
import sys

host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
connection = socket.create_connection((host, port), timeout=20)
reader = connection.makefile("rb")

key = base64.b64encode(os.urandom(16))
connection.sendall(
    b"GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % (path.encode(), host.encode(), port, key)
)
status = reader.readline()
assert b" 101 " in status, status
headers = {}
while (line := reader.readline().strip()):
    name, value = line.split(b":", 1)
    headers[name.strip().lower()] = value.strip()
accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
assert headers[b"sec-websocket-accept"] == accept, headers
assert headers[b"upgrade"].lower() == b"websocket", headers


def send(opcode, payload):
    mask, length = os.urandom(4), len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    connection.sendall(head + mask + masked.to_bytes(length, "big"))


def receive():
    first, second = reader.read(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", reader.read(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", reader.read(8))
    return first & 0x0F, reader.read(length)


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
for opcode, payload in [
    (TEXT, "grüße".encode()),
    (BINARY, bytes(range(256))),
    (TEXT, b""),
    (BINARY, os.urandom(1000)),
    (BINARY, os.urandom(300_000)),
]:
    send(opcode, payload)
    assert receive() == (opcode, payload), "an echo that is none"
for number in range(100):
    send(TEXT, b"%d" % number)
    assert receive() == (TEXT, b"%d" % number)
send(PING, b"are you there")
assert receive() == (PONG, b"are you there")
send(CLOSE, struct.pack("!H", 1000))
opcode, payload = receive()
assert opcode == CLOSE and payload[:2] == struct.pack("!H", 1000), (opcode, payload)
assert reader.read() == b"", "bytes after the close"
print("105 messages up to 300 kB, a ping and a close")
