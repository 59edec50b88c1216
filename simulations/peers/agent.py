"""An agent of the existing contract, with nothing of ours in it.

Written from the first section of the HTTP contract's page alone, without a look at the programs that answer it: it is the
third party of the interop tests. Standard library only, Python 3.9 or later.

It does what such an agent does, in this order: asks for /health and gives up unless the answer is 200; registers, within 10 s,
once, and gives up unless the answer is 2xx; asks for the DHT's seeds; serves its own HTTP; sends heartbeats; unregisters when
it is told to stop (SIGTERM, SIGINT). It never registers again by itself. Each step is one line of JSON on standard output, with
`event`, and where something was asked `status` (null where there was no answer) and `answer` or `error`.

Its own HTTP: GET /health; POST /echo gives the body back; GET /events streams server-sent events, for ever or `?count=N` of
them; everything else is answered with who answers and what was asked.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import socketserver
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ASK_TIMEOUT = 10
REGISTER_TIMEOUT = 10
HEARTBEAT_TIMEOUT = 5
EVENT_INTERVAL = 0.1
PIECE_BYTES = 1 << 16
BODY_IN_MEMORY_BYTES = 1 << 20


def say(event, **details):
    """One step, as one line."""
    print(json.dumps({"event": event, **details}), flush=True)


class Coordinator:
    """Whom the agent speaks to: an entry or a coordinator, it cannot tell."""

    def __init__(self, url):
        self.url = url.rstrip("/")
        # What a proxy of this machine's environment would answer is no part of the contract.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, event, method, path, body=None, timeout=ASK_TIMEOUT):
        """Asks, says what came of it, and returns the status (None without an answer) and the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
            with self.opener.open(request, timeout=timeout) as response:
                status, raw = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, raw = error.code, error.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            say(event, status=None, error=str(error))
            return None, None
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = raw.decode("utf-8", "replace")
        say(event, status=status, answer=answer)
        return status, answer


class Handler(BaseHTTPRequestHandler):
    """The agent's own HTTP."""

    protocol_version = "HTTP/1.1"

    def handle_any(self):
        with self.server.one_more_request():
            path, _, query = self.path.partition("?")
            if self.command == "GET" and path == "/events":
                self.stream_events(urllib.parse.parse_qs(query))
                return
            with tempfile.SpooledTemporaryFile(BODY_IN_MEMORY_BYTES) as body:
                digest = hashlib.sha256()
                for piece in self.body():
                    digest.update(piece)
                    body.write(piece)
                if self.command == "POST" and path == "/echo":
                    self.echo(body)
                elif path == "/health":
                    self.answer_json({"status": "healthy"})
                else:
                    self.answer_json(
                        {
                            "worker_id": self.server.worker_id,
                            "method": self.command,
                            "path": self.path,
                            "sha256": digest.hexdigest(),
                            "headers": {name.lower(): value for name, value in self.headers.items()},
                        }
                    )

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_any

    def body(self):
        """The request's body, piece by piece, whichever way it is framed."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield from self.pieces(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            yield from self.pieces(int(self.headers.get("Content-Length", 0)))

    def pieces(self, left):
        while left > 0:
            piece = self.rfile.read(min(left, PIECE_BYTES))
            if not piece:
                raise ConnectionAbortedError("the body broke off")
            left -= len(piece)
            yield piece

    def answer_json(self, answer):
        body = json.dumps(answer).encode()
        self.begin("application/json", ("Content-Length", str(len(body))))
        if self.command != "HEAD":
            self.wfile.write(body)

    def echo(self, body):
        kind = self.headers.get("Content-Type", "application/octet-stream")
        self.begin(kind, ("Content-Length", str(body.tell())))
        body.seek(0)
        shutil.copyfileobj(body, self.wfile, PIECE_BYTES)

    def stream_events(self, query):
        """Until the client hangs up, or as many as it wants."""
        count = int(query["count"][0]) if "count" in query else None
        self.begin("text/event-stream", ("Cache-Control", "no-store"), ("Transfer-Encoding", "chunked"))
        number = 0
        while number != count:
            event = json.dumps({"worker_id": self.server.worker_id, "number": number})
            self.write_chunk(f"id: {number}\ndata: {event}\n\n".encode())
            number += 1
            time.sleep(EVENT_INTERVAL)
        self.write_chunk(b"")

    def write_chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def begin(self, kind, *headers):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        """Standard output is for the steps, and nobody reads the rest."""


class Server(ThreadingHTTPServer):
    """Bound at once, so that the port is known, but nobody can connect before `start`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port):
        super().__init__(("127.0.0.1", port), Handler, bind_and_activate=False)
        self.worker_id = None
        self.active = 0
        self.lock = threading.Lock()
        self.server_bind()

    def server_bind(self):
        # Without the look-up of this machine's name that HTTPServer would do here: it may take seconds.
        socketserver.TCPServer.server_bind(self)

    @property
    def port(self):
        return self.server_address[1]

    def start(self, worker_id):
        self.worker_id = worker_id
        self.server_activate()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @contextlib.contextmanager
    def one_more_request(self):
        with self.lock:
            self.active += 1
        try:
            yield
        finally:
            with self.lock:
                self.active -= 1

    def handle_error(self, request, client_address):
        """A client that hung up, or sent nonsense: it has its closed connection, and the next one is served."""


class Agent:
    """One run, from the first question to the last."""

    def __init__(self, options):
        self.options = options
        self.coordinator = Coordinator(options.coordinator)
        self.server = Server(options.port)
        self.worker_id = options.worker_id
        self.services = [name for name in options.services.split(",") if name]
        self.registered = False
        url = f"http://127.0.0.1:{self.server.port}"
        self.tunnel_url = url if options.tunnel_url is None else options.tunnel_url

    def run(self):
        try:
            self.check_health()
            self.register()
            self.coordinator.ask("bootstrap", "GET", "/api/dht/bootstrap")
            self.server.start(self.worker_id)
            say("serving", port=self.server.port, worker_id=self.worker_id, tunnel_url=self.tunnel_url)
            self.send_heartbeats()
        finally:
            if self.registered and not self.options.no_unregister:
                path = "/api/worker/unregister/" + urllib.parse.quote(self.worker_id, safe="")
                self.coordinator.ask("unregister", "DELETE", path)
            say("exit")

    def check_health(self):
        status, _ = self.coordinator.ask("health", "GET", "/health")
        if status != 200:
            sys.exit(1)

    def register(self):
        """Once. What is refused, or takes longer than 10 s, is not tried again."""
        path = "/api/edge/register" if self.options.edge else "/api/worker/register"
        status, answer = self.coordinator.ask("register", "POST", path, self.registration(), REGISTER_TIMEOUT)
        if status is None or not 200 <= status < 300:
            sys.exit(1)
        if isinstance(answer, dict):
            # Who brings no id is given one; who offers nothing is given something to offer.
            self.worker_id = answer.get("worker_id") or self.worker_id
            self.services = self.services or answer.get("assigned_services", [])
        if not self.worker_id:
            say("no-id", error="it brought no worker id and was given none")
            sys.exit(1)
        self.registered = True

    def registration(self):
        kind = "edge" if self.options.edge else self.options.type
        said = {
            "worker_type": kind,
            "tunnel_url": self.tunnel_url,
            "location": "interop lab",
            "vpn_ip": None,
            "services": self.services,
            "capabilities": self.capabilities(kind),
        }
        if self.worker_id is not None:
            said["worker_id"] = self.worker_id
        if self.options.edge:
            said["role"] = "edge_coordinator"
        return said

    @staticmethod
    def capabilities(kind):
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            "hostname": socket.gethostname(),
            "cpu_cores": os.cpu_count() or 1,
            "ram": f"{memory_bytes >> 30}GB",
            "has_gpu": kind == "gpu",
            "gpu_type": "NVIDIA RTX A5000" if kind == "gpu" else None,
            "gpu_memory": "24576 MiB" if kind == "gpu" else None,
            "worker_type": kind,
            "has_public_ip": False,
            "public_ip": None,
            "low_latency": kind == "edge",
            "latency_ms": 5,
            "has_edge": kind == "edge",
            "has_storage": kind == "storage",
            "location": "interop lab",
        }

    def send_heartbeats(self):
        """Until a signal ends it, whatever the answers are: what is not known there is not this agent's to mend."""
        if self.options.silent_for:
            say("silent", seconds=self.options.silent_for)
            time.sleep(self.options.silent_for)
        path = "/api/edge/heartbeat" if self.options.edge else "/api/worker/heartbeat"
        while True:
            self.coordinator.ask("heartbeat", "POST", path, self.heartbeat(), HEARTBEAT_TIMEOUT)
            time.sleep(self.options.heartbeat)

    def heartbeat(self):
        if self.options.edge:
            return {"worker_id": self.worker_id}
        active = self.server.active
        said = {
            "worker_id": self.worker_id,
            "status": "healthy",
            "current_load": min(active / 10, 1.0),
            "active_requests": active,
            "loaded_models": [],
            "services_status": {name: "healthy" for name in self.services},
        }
        if self.options.type == "gpu":
            said["gpu_utilization"] = 0.0
        return said


def parse_options():
    parser = argparse.ArgumentParser(description="An agent of the existing contract.")
    parser.add_argument("--coordinator", required=True, metavar="URL", help="the entry or coordinator to register with")
    parser.add_argument("--worker-id", metavar="ID", help="the id to register under (left out: one is given to it)")
    parser.add_argument("--type", default="cpu", help="worker_type: auto, gpu, cpu, storage or edge (default: cpu)")
    parser.add_argument("--port", type=int, default=0, help="its own HTTP port on loopback (default: any free one)")
    parser.add_argument("--tunnel-url", metavar="URL", help="what to say it is reached at (default: its own HTTP)")
    parser.add_argument("--services", default="", metavar="A,B", help="what to say it offers (default: nothing)")
    parser.add_argument("--heartbeat", type=float, default=30, metavar="SECONDS", help="between two (default: 30)")
    parser.add_argument(
        "--silent-for", type=float, default=0, metavar="SECONDS", help="load a model: no heartbeat for so long at first"
    )
    parser.add_argument("--no-unregister", action="store_true", help="go without a word, as a crash would")
    parser.add_argument("--edge", action="store_true", help="register and send heartbeats as an edge coordinator")
    options = parser.parse_args()
    if options.edge and options.worker_id is None:
        parser.error("--edge needs --worker-id: nobody gives one to an edge coordinator")
    return options


def stop(*_):
    """The way out of whatever it is doing; a second signal does not wait for the unregistration either."""
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    Agent(parse_options()).run()
