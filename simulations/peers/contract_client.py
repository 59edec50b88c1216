"""Checks every endpoint of the existing contract, field by field, at one base URL: an entry's or a coordinator's.

Written from the first section of the HTTP contract's page alone, without a look at the programs that answer it. Standard
library only, Python 3.9 or later.

    contract_client.py --base URL --worker-id ID [--service NAME]

ID is a worker that is registered in the federation, wherever. NAME is a service that can be reached through the base, and that
is answered by an `agent.py`: without it, what needs an answer from a worker is left out, and said to be. The checks register
workers of their own and unregister them. `contract_page.py` has to lie beside this file.

One line for each check: `ok`, `FAIL` with what is wrong, or `skip`. Exits with 1 when a check failed. A field that the page
names must be there and of its type; fields that it does not name may be there too, since clients ignore them.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import secrets
import sys
import time
import urllib.parse
from collections import namedtuple

import contract_page as page
from contract_page import Broken, need, some_text, text

# Registering waits up to 8 s for a coordinator; the rest is quicker.
ANSWER_TIMEOUT = 15
# For what one process has taken and another one hears of a moment later.
PATIENCE = 10
PAUSE = 0.2
PIECE_BYTES = 1 << 16

# What an agent tells of its machine, and nobody else is to be told.
HOST_NAME = "a-volunteers-own-machine.invalid"
PUBLIC_ADDRESS = "203.0.113.77"
CAPABILITIES = {
    "hostname": HOST_NAME,
    "cpu_cores": 8,
    "ram": "62GB",
    "has_gpu": False,
    "gpu_type": None,
    "gpu_memory": "24576 MiB",
    "worker_type": "cpu",
    "has_public_ip": True,
    "public_ip": PUBLIC_ADDRESS,
    "low_latency": True,
    "latency_ms": 5,
    "has_edge": False,
    "has_storage": False,
    "a_field_of_tomorrow": {"kept": [1, 2.5, None]},
}
NOBODYS = "nobody-offers-this"


class Skipped(Exception):
    """What cannot be checked here, and why."""


class Answer(namedtuple("Answer", "status headers body")):
    """What came back, read to its end."""

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            raise Broken(f"the answer ({self.status}) is not JSON: {self.body[:100]!r}") from None

    def header(self, name):
        return self.headers.get(name, "")

    def good(self, shape):
        """A success of this shape, and nothing in it that says it is an error."""
        need(200 <= self.status < 300, f"the status is {self.status}: {self.body[:300]!r}")
        kind = self.header("content-type").split(";")[0].strip()
        need(kind == "application/json", f"the content type is {kind!r}")
        answer = self.json()
        page.fits(answer, shape)
        need(not (isinstance(answer, dict) and answer.get("error")), f"a {self.status} with an error in it")
        return answer

    def problem(self, *statuses):
        """An error as they all have to be: RFC 9457 with a stable code and the request's id."""
        wanted = " or ".join(map(str, statuses))
        need(self.status in statuses, f"the status is {self.status}, not {wanted}: {self.body[:300]!r}")
        kind = self.header("content-type").split(";")[0].strip()
        need(kind == "application/problem+json", f"the content type of the error is {kind!r}")
        answer = self.json()
        page.fits(answer, page.PROBLEM, "problem")
        need(answer["status"] == self.status, f"problem.status is {answer['status']} in an answer {self.status}")
        need(any("request" in key.lower() for key in answer), f"no request id in the problem: {', '.join(answer)}")
        return answer


class Base:
    """The URL under test. A connection for each question, and targets go out as they are written."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None or parts.path not in ("", "/"):
            sys.exit(f"{url!r} is no base URL; write one like http://127.0.0.1:8080")
        self.authority = parts.netloc
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.connect = lambda: kind(parts.hostname, parts.port, timeout=ANSWER_TIMEOUT)

    @contextlib.contextmanager
    def asking(self, method, target, body=None, headers=()):
        """The head of the answer; its body is the caller's to read."""
        headers = dict(headers)
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, target, body, headers)
            yield connection.getresponse()

    def ask(self, method, target, body=None, headers=()):
        with self.asking(method, target, body, headers) as response:
            return Answer(response.status, response.headers, response.read())

    def get(self, target):
        return self.ask("GET", target)


class World:
    """What the checks share: the base, what stands behind it, and the workers that they registered."""

    def __init__(self, options):
        self.base = Base(options.base)
        self.worker_id = options.worker_id
        self.named_service = options.service
        self.registered = set()

    @property
    def service(self):
        if self.named_service is None:
            raise Skipped("no --service")
        return self.named_service

    def register(self, path="/api/worker/register", **said):
        """Registers a worker, and remembers to unregister it."""
        answer = self.base.ask("POST", path, said)
        if 200 <= answer.status < 300:
            self.registered.add(answer.json().get("worker_id") or said["worker_id"])
        return answer

    def unregister(self, worker_id):
        return self.base.ask("DELETE", "/api/worker/unregister/" + urllib.parse.quote(worker_id, safe=""))

    def unregister_all(self):
        while self.registered:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.unregister(self.registered.pop())

    def routed(self, method, target, body=None, headers=()):
        """An answer of an `agent.py`: who it is, and what it was asked."""
        answer = self.base.ask(method, target, body, headers)
        return answer.good({"worker_id": some_text, "method": text, "path": text, "sha256": text, "headers": {}})


CHECKS = []


def check(what):
    def add(function):
        CHECKS.append((what, function))
        return function

    return add


def new_id(kind):
    return f"contract-{kind}-{secrets.token_hex(4)}"


def eventually(attempt):
    """What one process was told, another one may hear a moment later."""
    began = time.monotonic()
    while True:
        try:
            return attempt()
        except Broken:
            if time.monotonic() - began > PATIENCE:
                raise
        time.sleep(PAUSE)


@check("GET /health")
def health(world):
    world.base.get("/health").good(page.HEALTH)


@check("POST /api/worker/register, each type: tier, services of the default catalogue and their configurations")
def register_each_type(world):
    for kind, tier in page.TIERS.items():
        worker_id = new_id(kind)
        capabilities = {**CAPABILITIES, "worker_type": kind, "has_gpu": kind == "gpu"}
        answer = world.register(worker_id=worker_id, worker_type=kind, services=[], capabilities=capabilities)
        answer = answer.good(page.REGISTERED)
        need(answer["worker_id"] == worker_id, f"registered as {answer['worker_id']!r}, not as {worker_id!r}")
        need((answer["worker_type"], answer["tier"]) == (kind, tier), f"{kind} is in tier {answer['tier']}")
        assigned = answer["assigned_services"]
        need(assigned, f"a {kind} worker that offers nothing was assigned nothing")
        strange = set(assigned) - set(page.CATALOGUE[kind])
        need(not strange, f"a {kind} worker was assigned {', '.join(strange)}")
        configured = {one["name"]: (one["port"], one["priority"]) for one in answer["service_configs"]}
        expected = {name: page.CATALOGUE[kind][name] for name in assigned}
        need(configured == expected, f"service_configs are {configured}, not {expected}")
        if kind == "edge":
            need(answer.get("role") == "edge_coordinator", f"the role of an edge worker is {answer.get('role')!r}")


@check("POST /api/worker/register without an id, or with an empty one: it is given one")
def register_without_id(world):
    ids = set()
    for said in ({}, {"worker_id": ""}):
        answer = world.register(worker_type="cpu", capabilities=CAPABILITIES, **said).good(page.REGISTERED)
        ids.add(answer["worker_id"])
    need(len(ids) == 2, f"two workers were given the same id: {ids}")


@check("POST /api/worker/register with vpn_ip null, a tunnel_url that is none, and unknown fields: not routable, and why")
def register_nonsense(world):
    said = {"vpn_ip": None, "tunnel_url": "http://:8000", "a_field_of_tomorrow": {}, "location": "somewhere"}
    answer = world.register(worker_id=new_id("odd"), worker_type="cpu", capabilities=CAPABILITIES, **said)
    answer = answer.good(page.REGISTERED)
    need(answer.get("routable") is False, f"routable is {answer.get('routable')!r}")
    reasons = [key for key, value in answer.items() if "reason" in key and some_text(value)]
    need(reasons or answer["message"], "no reason is given")


@check("POST /api/worker/register with something missing: 422 names it; what is not JSON: 4xx")
def register_wrong(world):
    answer = world.register(worker_id=new_id("wrong"), worker_type="cpu")
    answer.problem(422)
    need(b"capabilities" in answer.body, f"the missing field is not named: {answer.body[:300]!r}")
    world.base.ask("POST", "/api/worker/register", b"{", {"Content-Type": "application/json"}).problem(400, 422)
    world.base.ask("POST", "/api/worker/register", []).problem(400, 422)


@check("POST /api/worker/heartbeat: for a worker of this base, for one that may be another's, and 404 for nobody's")
def heartbeat(world):
    worker_id = new_id("beat")
    world.register(worker_id=worker_id, worker_type="cpu", capabilities=CAPABILITIES).good(page.REGISTERED)
    short = {"worker_id": worker_id, "status": "degraded", "current_load": 0.5}
    full = {
        **short,
        "status": "healthy",
        "active_requests": 2,
        "gpu_utilization": 0.25,
        "loaded_models": ["a-model"],
        "services_status": {"ner-extraction": "healthy"},
        "a_field_of_tomorrow": 1,
    }
    for said in (short, full, {**full, "worker_id": world.worker_id}):
        world.base.ask("POST", "/api/worker/heartbeat", said).good(page.OK)
    world.base.ask("POST", "/api/worker/heartbeat", {**full, "worker_id": new_id("nobody")}).problem(404)
    without = {key: value for key, value in full.items() if key != "worker_id"}
    world.base.ask("POST", "/api/worker/heartbeat", without).problem(422)


@check("DELETE /api/worker/unregister/{id}: after it the id is nobody's")
def unregister(world):
    worker_id = new_id("leaving")
    world.register(worker_id=worker_id, worker_type="cpu", capabilities=CAPABILITIES).good(page.REGISTERED)
    world.unregister(worker_id).good(page.UNREGISTERED)
    said = {"worker_id": worker_id, "status": "healthy", "current_load": 0}
    eventually(lambda: world.base.ask("POST", "/api/worker/heartbeat", said).problem(404))


@check("POST /api/edge/register, with tunnel_url or url, and POST /api/edge/heartbeat")
def edge(world):
    for url in ("tunnel_url", "url"):
        worker_id = new_id("edge")
        said = {"worker_type": "edge", "services": [], "role": "edge_coordinator", "capabilities": {"location": "here"}}
        said[url] = "https://edge.example.org"
        world.register("/api/edge/register", worker_id=worker_id, **said).good(page.EDGE_REGISTERED)
        world.base.ask("POST", "/api/edge/heartbeat", {"worker_id": worker_id}).good(page.OK)
    world.base.ask("POST", "/api/edge/heartbeat", {"worker_id": new_id("nobody")}).problem(404)
    answer = world.base.ask("POST", "/api/edge/register", {"worker_type": "edge", "capabilities": {}})
    answer.problem(422)
    need(b"worker_id" in answer.body, f"the missing field is not named: {answer.body[:300]!r}")


@check("GET /api/dht/bootstrap")
def bootstrap(world):
    answer = world.base.get("/api/dht/bootstrap").good(page.BOOTSTRAP)
    need(answer["count"] == len(answer["seeds"]), f"count is {answer['count']} with {len(answer['seeds'])} seeds")


@check("GET /api/services/discover/{service}")
def discover(world):
    service = world.service
    answer = world.base.get(f"/api/services/discover/{service}").good(page.DISCOVERED)
    workers = answer["workers"]
    need(answer["service"] == service, f"asked for {service}, told of {answer['service']}")
    need(workers and answer["count"] == len(workers), f"count is {answer['count']} with {len(workers)} workers")
    for worker in workers:
        url = urllib.parse.urlsplit(worker["tunnel_url"])
        need(url.scheme in ("http", "https") and url.netloc, f"a tunnel_url is {worker['tunnel_url']!r}")
    recommended = answer["recommended"]
    ways = [way for worker in workers for way in (worker, worker["worker_id"], worker["tunnel_url"])]
    need(recommended in ways, f"recommended is none of the workers: {recommended!r:.100}")


@check("GET /api/services/discover/{service} and /api/worker/find/{service} for what nobody offers: 503")
def discover_nobodys(world):
    world.base.get(f"/api/services/discover/{NOBODYS}").problem(503)
    world.base.get(f"/api/worker/find/{NOBODYS}").problem(404, 503)


@check("GET /api/worker/find/{service}, and ANY /worker/{worker_id}/{service}/{path} as it says")
def find(world):
    service = world.service
    url = world.base.get(f"/api/worker/find/{service}").good(page.FOUND)["worker_url"]
    parts = urllib.parse.urlsplit(url)
    need(parts.scheme in ("http", "https") and parts.netloc, f"worker_url is not absolute: {url!r}")
    steps = parts.path.split("/")
    need(len(steps) == 4 and steps[1] == "worker" and steps[3] == service, f"worker_url is {url!r}")
    answered = set()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        answer = world.routed(method, parts.path + "/some/path?x=1", None if method == "GET" else b"body")
        need((answer["method"], answer["path"]) == (method, "/some/path?x=1"), f"{method} came as {answer}")
        answered.add(answer["worker_id"])
    need(len(answered) == 1, f"one worker's name was answered by several: {answered}")
    world.base.get(f"/worker/{new_id('nobody')}/{service}/").problem(404, 503)


@check("GET /api/services/list")
def services_list(world):
    answer = world.base.get("/api/services/list").good(page.anything)
    need(isinstance(answer, (dict, list)), f"the list is {answer!r:.100}")
    if world.named_service is not None:
        need(f'"{world.service}"' in json.dumps(answer), f"{world.service} is not in the list")


@check("GET /api/admin/workers")
def admin_workers(world):
    def attempt():
        answer = world.base.get("/api/admin/workers").good(page.WORKERS)
        need(answer["total"] == len(answer["workers"]), f"total is {answer['total']} of {len(answer['workers'])}")
        need(answer["healthy"] <= answer["total"], f"{answer['healthy']} of {answer['total']} are healthy")
        known = [worker.get("worker_id") for worker in answer["workers"]]
        need(world.worker_id in known, f"{world.worker_id} is not among the workers: {known}")

    eventually(attempt)


@check("GET /api/admin/coordinators")
def admin_coordinators(world):
    for one in world.base.get("/api/admin/coordinators").good(page.COORDINATORS):
        need(one["registered_at"] <= one["last_seen"], f"{one['worker_id']} was seen before it registered")


@check("GET /api/admin/stats")
def admin_stats(world):
    answer = world.base.get("/api/admin/stats").good(page.STATS)
    need(set(answer["by_tier"]) == set("1234"), f"by_tier has {', '.join(answer['by_tier'])}")
    need(answer["healthy_workers"] <= answer["total_workers"], "more workers are healthy than there are")
    need(sum(answer["by_tier"].values()) <= answer["total_workers"], "more workers have a tier than there are")


@check("GET /api/dht/topology and /api/dht/stats")
def topology(world):
    for path in ("/api/dht/topology", "/api/dht/stats"):
        answer = world.base.get(path).good(page.TOPOLOGY)
        ids = {node[key] for node in answer["nodes"] for key in ("id", "node_id")}
        ends = {end for line in answer["connections"] for end in (line["source_id"], line["target_id"])}
        need(ends <= ids, f"{path}: connections of nodes that are not there: {ends - ids}")


@check("no public answer holds a volunteer's host name or address")
def nothing_private(world):
    capabilities = {**CAPABILITIES, "has_gpu": True}
    said = {"worker_id": new_id("private"), "worker_type": "gpu", "services": ["llm-inference"]}
    world.register(capabilities=capabilities, **said).good(page.REGISTERED)
    services = ["llm-inference"] + ([] if world.named_service is None else [world.named_service])
    views = page.PUBLIC_VIEWS + tuple(f"/api/services/discover/{name}" for name in services)
    for view in views:
        body = world.base.get(view).body
        for secret in (HOST_NAME, PUBLIC_ADDRESS):
            need(secret.encode() not in body, f"{view} tells {secret}")


@check("ANY /service/{name}/{path} and /api/service/{name}/{path}: method, path and query byte for byte, headers, body")
def routed(world):
    rest = "/a%2Fb//c/../d%20e/?x=1&&y=%2f&z="
    body = bytes(range(256))
    names = [world.service] + [alias for alias, name in page.ALIASES.items() if name == world.service]
    for prefix in [f"{root}/service/{name}" for root in ("", "/api") for name in names]:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            sent = b"" if method == "GET" else body
            answer = world.routed(method, prefix + rest, sent or None, {"X-Contract-Check": "as it came"})
            need((answer["method"], answer["path"]) == (method, rest), f"{method} {prefix}{rest} came as {answer}")
            need(answer["sha256"] == hashlib.sha256(sent).hexdigest(), f"the body of {method} came as another")
            headers = answer["headers"]
            need(headers.get("x-contract-check") == "as it came", f"a header is gone: {headers}")
            need(headers.get("x-forwarded-prefix") == prefix, f"the prefix is {headers.get('x-forwarded-prefix')!r}")
            need(headers.get("host") not in (None, world.base.authority), f"Host is {headers.get('host')!r}")
        need(world.routed("GET", prefix)["path"] == "/", f"{prefix} alone is not / to the service")
        answer = world.base.ask("HEAD", prefix + "/x")
        need((answer.status, answer.body) == (200, b""), f"HEAD was answered {answer.status} with {answer.body!r:.50}")


@check("/service/{name}/…: bodies are binary-safe both ways, with a length or in chunks")
def bodies(world):
    body = secrets.token_bytes(3 << 20)
    pieces = (body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))
    for sent in (body, pieces):
        answer = world.base.ask("POST", f"/service/{world.service}/echo", sent, {"Content-Type": "image/png"})
        need(answer.status == 200 and answer.body == body, f"{answer.status}, {len(answer.body)} bytes of {len(body)}")
        need(answer.header("content-type") == "image/png", f"the type came as {answer.header('content-type')!r}")


@check("/service/{name}/…: an answer is passed on while it is written")
def streamed(world):
    # The agent takes a second for these; who collects them first has them all at once.
    with world.base.asking("GET", f"/service/{world.service}/events?count=10") as response:
        need(response.status == 200, f"the status is {response.status}")
        kind = response.headers.get("content-type", "")
        need(kind.startswith("text/event-stream"), f"the type is {kind!r}")
        first = response.readline()
        began = time.monotonic()
        rest = response.read()
    need(first == b"id: 0\n", f"the stream begins with {first!r}")
    need(rest.count(b"\ndata: ") + rest.startswith(b"data: ") == 10, f"the stream is {rest!r}")
    need(time.monotonic() - began > 0.5, "ten events that were written one by one came all at once")


@check("/service/{name}/… without a healthy worker: 503 with Retry-After")
def no_worker(world):
    for prefix in ("/service", "/api/service"):
        answer = world.base.get(f"{prefix}/{NOBODYS}/path")
        answer.problem(503)
        need(answer.header("retry-after").isdigit(), f"Retry-After is {answer.header('retry-after')!r}")


@check("every other /api path: 404, by the base itself")
def other_paths(world):
    for method, path in (("GET", "/api/nothing"), ("POST", "/api/worker/nothing"), ("GET", "/api/")):
        world.base.ask(method, path).problem(404)


@check("CORS: preflights are answered, and answers may be read, as web clients need it")
def cors(world):
    origin = {"Origin": "https://client.example"}
    asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
    for target in ("/api/services/list", f"/service/{world.named_service or NOBODYS}/path"):
        answer = world.base.ask("OPTIONS", target, headers={**origin, **asked})
        need(answer.status in (200, 204), f"the preflight for {target} was answered {answer.status}")
        wanted = {
            "access-control-allow-origin": {"*"},
            "access-control-allow-methods": {"get", "post", "put", "patch", "delete", "options"},
            "access-control-allow-headers": {"content-type", "authorization"},
            "access-control-max-age": {"86400"},
        }
        for name, words in wanted.items():
            said = {word.strip().lower() for word in answer.header(name).split(",")}
            need(words <= said, f"{target}: {name} is {answer.header(name)!r}")
        answer = world.base.ask("GET", target, headers=origin)
        allowed = answer.header("access-control-allow-origin")
        need(allowed == "*", f"GET {target}: access-control-allow-origin is {allowed!r}")


def run(world):
    """All checks, each on its own; what failed."""
    failed = []
    for what, function in CHECKS:
        try:
            function(world)
        except Skipped as reason:
            print(f"skip  {what}: {reason}", flush=True)
        except (Broken, OSError, http.client.HTTPException) as error:
            failed.append(what)
            print(f"FAIL  {what}: {error or type(error).__name__}", flush=True)
        else:
            print(f"ok    {what}", flush=True)
        finally:
            # The next check should not meet this one's workers.
            world.unregister_all()
    return failed


def parse_options():
    parser = argparse.ArgumentParser(description="Checks the existing contract at one base URL.")
    parser.add_argument("--base", required=True, metavar="URL", help="an entry or a coordinator")
    parser.add_argument("--worker-id", required=True, metavar="ID", help="a registered worker of the federation")
    parser.add_argument("--service", metavar="NAME", help="a service that an agent.py answers, reachable through URL")
    return parser.parse_args()


def main():
    world = World(parse_options())
    failed = run(world)
    if failed:
        sys.exit(f"{len(failed)} of {len(CHECKS)} checks failed at {world.base.authority}")
    print(f"{len(CHECKS)} checks at {world.base.authority}")


if __name__ == "__main__":
    main()
