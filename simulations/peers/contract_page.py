"""What the existing contract's page says, as data: types and tiers, the default catalogue, and the shape of each answer.

For `contract_client.py`, which has to find it beside itself. Written from the first section of the HTTP contract's page alone.
"""

TIERS = {"gpu": 1, "cpu": 2, "storage": 3, "edge": 4}
ALIASES = {
    "rag": "rag-embeddings",
    "upload": "document-processing",
    "notes": "notes-coa",
    "ner": "ner-extraction",
    "ocr": "vision-ocr",
    "llm": "llm-inference",
}
# name: (port, priority), by the type of worker that is eligible; a gpu worker takes cpu services too.
CPU = {"ner-extraction": (8108, 2), "document-processing": (8103, 2), "notes-coa": (8100, 3)}
CATALOGUE = {
    "gpu": {"llm-inference": (8105, 1), "vision-ocr": (8104, 1), "rag-embeddings": (8102, 2), **CPU},
    "cpu": CPU,
    "storage": {
        "chromadb": (8000, 1),
        "redis": (6379, 2),
        "postgres": (5432, 3),
        "minio": (9000, 4),
        "neo4j": (7474, 5),
    },
    "edge": {"coordinator": (8080, 1), "edge-proxy": (8787, 1), "load-balancer": (8090, 2)},
}
PUBLIC_VIEWS = (
    "/api/dht/bootstrap",
    "/api/services/list",
    "/api/admin/workers",
    "/api/admin/coordinators",
    "/api/admin/stats",
    "/api/dht/topology",
    "/api/dht/stats",
)


class Broken(Exception):
    """A promise of the contract that was not kept."""


def need(condition, what):
    """A promise: without the condition it is broken in this way."""
    if not condition:
        raise Broken(what)


# What an answer looks like: a dict has at least these keys, a list of one has only such items, and a function says yes or no.


def text(value):
    return isinstance(value, str)


def some_text(value):
    return isinstance(value, str) and value != ""


def count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def anything(_):
    return True


def one_of(*words):
    def is_one_of(value):
        return value in words

    is_one_of.__name__ = " or ".join(repr(word) for word in words)
    return is_one_of


def fits(value, shape, at="answer"):
    """Holds the value to the shape; the first place where it does not fit is named."""
    if isinstance(shape, dict):
        need(isinstance(value, dict), f"{at} is no object: {value!r:.100}")
        for key, inner in shape.items():
            need(key in value, f"{at}.{key} is missing; there: {', '.join(value) or 'nothing'}")
            fits(value[key], inner, f"{at}.{key}")
    elif isinstance(shape, list):
        need(isinstance(value, list), f"{at} is no list: {value!r:.100}")
        for index, item in enumerate(value):
            fits(item, shape[0], f"{at}[{index}]")
    else:
        need(shape(value), f"{at} is not {shape.__name__.replace('_', ' ')}: {value!r:.100}")


HEALTH = {"status": some_text, "coordinators": count, "message": text}
REGISTERED = {
    "status": one_of("registered"),
    "worker_id": some_text,
    "worker_type": one_of(*TIERS),
    "tier": one_of(*TIERS.values()),
    "assigned_services": [some_text],
    "service_configs": [{"name": some_text, "port": count, "priority": count}],
    "message": text,
}
EDGE_REGISTERED = {
    "status": some_text,
    "role": one_of("edge_coordinator"),
    "total_coordinators": count,
    "message": text,
}
OK = {"status": one_of("ok")}
UNREGISTERED = {"status": some_text, "message": text}
BOOTSTRAP = {
    "seeds": [{"node_id": some_text, "tunnel_url": text, "dht_port": count, "location": text}],
    "ttl": count,
    "count": count,
}
DISCOVERED = {
    "service": some_text,
    "workers": [
        {"worker_id": some_text, "tunnel_url": text, "capabilities": {}, "load": number, "last_heartbeat": number}
    ],
    "count": count,
    "recommended": anything,
}
FOUND = {"worker_url": some_text}
WORKERS = {"workers": [{}], "total": count, "healthy": count}
COORDINATORS = [
    {"worker_id": some_text, "tunnel_url": text, "location": text, "registered_at": count, "last_seen": count}
]
STATS = {
    "total_workers": count,
    "healthy_workers": count,
    "by_tier": {"1": count, "2": count, "3": count, "4": count},
    "total_tasks_completed": count,
}
TOPOLOGY = {
    "nodes": [{"id": some_text, "node_id": some_text, "node_type": text, "status": text, "services": [text]}],
    "connections": [{"source_id": some_text, "target_id": some_text, "type": text}],
    "stats": {},
}
PROBLEM = {"status": count, "title": some_text, "code": some_text}
