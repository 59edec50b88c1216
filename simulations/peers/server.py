"""A service on Python's http.server: HTTP/1.1 with kept connections, ranges, chunks, and a failure on request."""

import hashlib
import itertools
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

requests = itertools.count()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        # A kept connection that is closed now and then without a word, as real servers do.
        self.close_connection = next(requests) % 5 == 4
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/range":
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            digits = b"0123456789"
            part = digits[int(first):int(last) + 1]
            self.answer(206, part, [("Content-Range", f"bytes {first}-{last}/{len(digits)}")])
        elif path == "/fail":
            self.answer(500, b"it failed, as asked")
        elif path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"one ", b"two ", b"three"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.answer(200, self.path.encode())

    def do_POST(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left > 0:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                return
            digest.update(piece)
            left -= len(piece)
        self.answer(200, digest.hexdigest().encode())

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(f"listening on port {server.server_address[1]}", flush=True)
server.serve_forever()
