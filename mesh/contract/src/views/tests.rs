//! The answers of a federation with nodes and guests.

use hedgerow_proto::record::{Body, Lease, Roles};
use serde_json::json;

use super::*;
use crate::desk::tests::{SECOND, Said, at, id, node, worker_id};
use crate::desk::{DeskConfig, Elsewhere, Registered};
use crate::error::ContractError;
use crate::request::{Heartbeat, Registration};

const BASE: &str = "https://hedge.example.org";
const NOW_MS: u64 = 1_800_000_000_000;
/// What must never be seen.
const SECRETS: [&str; 6] = ["gpu-box-7", "203.0.113.9", "secret-tunnel", "10.8.0.3", "/ip4/", "internal.lan"];

/// Coordinators 1 and 2, which are there, and 5, which is not; nodes 3, which is reachable, and 4, which is not; guests
/// `g` and `e` of 1, and `lost` of 5.
struct Federation {
    said: Said,
    desk: Desk,
}

fn federation() -> Federation {
    let mut said = Said::new();
    said.coordinator(at(0), 5);
    said.say(at(0), 5, &guest_record("lost"));
    said.registry.handle_timeout(at(61));
    said.coordinator(at(61), 1);
    said.coordinator(at(61), 2);
    said.say(at(61), 3, &node(Roles::Worker, &["embed", "llm-inference"]));
    said.say(at(61), 4, &node(Roles::Worker, &["embed"]));
    let mut federation = Federation { said, desk: Desk::new(at(61), id(1), DeskConfig::default()) };
    federation.register(json!({
        "worker_id": "g", "worker_type": "gpu", "tunnel_url": "https://secret-tunnel.trycloudflare.com", "location": "EU",
        "vpn_ip": "10.8.0.3", "services": ["my-own"],
        "capabilities": {
            "hostname": "gpu-box-7", "public_ip": "203.0.113.9", "ram": "62GB", "has_gpu": true, "cpu_cores": 16,
            "addresses": ["203.0.113.9"], "fqdn": "internal.lan", "slots": 3,
        },
    }));
    federation.register(json!({"worker_id": "e", "worker_type": "edge", "capabilities": {}}));
    federation.heartbeat("g", 0.25, "healthy", 70);
    federation
}

fn guest_record(worker_id: &str) -> Body {
    let registration = Registration::parse(br#"{"capabilities": {}, "services": ["embed"]}"#).unwrap();
    let id = self::worker_id(worker_id);
    let limits = hedgerow_proto::limits::Limits::PRODUCTION;
    let details = crate::guest::details(&id, &registration, registration.services.clone(), &limits).unwrap();
    Body::Guest(Guest { worker_id: worker_id.into(), details })
}

impl Federation {
    fn register(&mut self, body: Value) {
        let registration = Registration::parse(body.to_string().as_bytes()).unwrap();
        let registered = self.desk.register(at(61), &self.said.registry, &registration, Elsewhere::Ask, || 1).unwrap();
        let Registered::Here { say, .. } = registered else { panic!("{registered:?}") };
        self.said.say(at(61), 1, &say);
    }

    fn heartbeat(&mut self, worker: &str, load: f64, status: &str, seconds: u64) {
        let body = json!({"worker_id": worker, "current_load": load, "status": status}).to_string();
        let heartbeat = Heartbeat::parse(body.as_bytes()).unwrap();
        if let Ok(crate::desk::Heard::Ok { say: Some(say) }) =
            self.desk.heartbeat(at(seconds), &self.said.registry, &heartbeat)
        {
            self.said.say(at(seconds), 1, &say);
        }
    }

    /// What is answered at 80 s: node 3 is half busy, and the guest `e` has no route.
    fn ask<T>(&self, with_desk: bool, ask: impl FnOnce(&Views<'_>) -> T) -> T {
        let node_load = |node: &NodeId| (*node == id(3)).then_some(0.5);
        let guest_reachable = |guest: &Guest| !guest.details.tunnel_url.is_empty();
        ask(&Views {
            registry: &self.said.registry,
            desk: with_desk.then_some(&self.desk),
            catalogue: Catalogue::built_in(),
            base_url: BASE,
            now: at(80),
            unix_now_ms: NOW_MS,
            node_load: &node_load,
            guest_reachable: &guest_reachable,
            tasks_completed: 7,
        })
    }

    fn json<T: Serialize>(&self, ask: impl FnOnce(&Views<'_>) -> T) -> Value {
        serde_json::to_value(self.ask(true, ask)).unwrap()
    }
}

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

#[test]
fn health_counts_coordinators_and_workers() {
    let health = federation().json(|views| views.health());
    assert_eq!(
        health,
        json!({
            "status": "healthy", "coordinators": 2, "message": "2 coordinators, and 3 of 5 workers healthy",
        })
    );
    let nobody = Federation { said: Said::new(), desk: Desk::new(at(0), id(1), DeskConfig::default()) };
    assert_eq!(nobody.json(|views| views.health())["message"], "0 coordinators, and no worker is known");
}

#[test]
fn a_discovery_names_the_reachable_healthy_workers_with_the_least_loaded_first() {
    let found = federation().json(|views| views.discover(&name("llm")).unwrap());
    let guest = json!({
        "worker_id": "g", "tunnel_url": "https://hedge.example.org/worker/g/llm-inference",
        "capabilities": {"ram": "62GB", "has_gpu": true, "cpu_cores": 16, "slots": 3},
        "load": 0.25, "last_heartbeat": NOW_MS - 10_000,
    });
    let three = id(3).to_string();
    let node = json!({
        "worker_id": three, "tunnel_url": format!("https://hedge.example.org/worker/{three}/llm-inference"),
        "capabilities": {
            "worker_type": "gpu", "cpu_cores": 8, "ram": "62GB", "has_gpu": true, "gpu_type": "RTX",
            "gpu_memory": "24576 MiB", "has_storage": false, "has_edge": false,
        },
        "load": 0.5, "last_heartbeat": NOW_MS,
    });
    assert_eq!(found, json!({"service": "llm", "workers": [&guest, node], "count": 2, "recommended": guest}));
    let url = federation().ask(true, |views| views.find(&name("llm")).unwrap().worker_url);
    assert_eq!(url, "https://hedge.example.org/worker/g/llm-inference");
}

#[test]
fn nobody_is_recommended_who_is_away_degraded_or_out_of_reach() {
    let mut federation = federation();
    let workers = |federation: &Federation, service: &str| {
        let found = federation.ask(true, |views| views.discover(&name(service)));
        found.map(|found| found.workers.into_iter().map(|worker| worker.worker_id).collect::<Vec<_>>())
    };
    // Node 4 offers it too, and so does a guest whose coordinator is away.
    assert_eq!(workers(&federation, "embed"), Ok(vec![id(3).to_string()]));
    assert_eq!(workers(&federation, "my-own"), Ok(vec!["g".into()]));
    let nobody = ContractError::NobodyOffers { service: "edge-proxy".into() };
    assert_eq!(workers(&federation, "edge-proxy"), Err(nobody.clone()));
    assert_eq!((nobody.status(), nobody.retry_after().is_some()), (503, true));
    assert!(federation.ask(true, |views| views.find(&name("none"))).is_err());
    federation.heartbeat("g", 0.1, "degraded", 75);
    assert_eq!(workers(&federation, "my-own").unwrap_err().status(), 503);
}

#[test]
fn a_service_of_the_name_itself_comes_before_an_alias() {
    let mut federation = federation();
    let url = |federation: &Federation| federation.ask(true, |views| views.find(&name("ocr")).unwrap().worker_url);
    assert!(url(&federation).ends_with("/worker/g/vision-ocr"));
    federation.register(json!({
        "worker_id": "h", "tunnel_url": "https://h.trycloudflare.com", "services": ["ocr"], "capabilities": {},
    }));
    assert!(url(&federation).ends_with("/worker/h/ocr"));
}

#[test]
fn every_service_is_listed_with_its_counts() {
    let list = federation().json(|views| views.services_list());
    let of = |service: &str| {
        let all = list["services"].as_array().unwrap();
        all.iter().find(|it| it["name"] == service).map(|it| (it["workers"].clone(), it["healthy"].clone()))
    };
    assert_eq!(of("embed"), Some((json!(3), json!(1))));
    assert_eq!(of("llm-inference"), Some((json!(2), json!(2))));
    assert_eq!(of("nothing"), None);
    assert_eq!(list["count"], list["services"].as_array().unwrap().len());
}

#[test]
fn dashboards_see_all_workers_and_how_they_do() {
    let federation = federation();
    let page = federation.json(|views| views.admin_workers());
    assert_eq!((&page["total"], &page["healthy"]), (&json!(5), &json!(3)));
    let of = |worker: &str| page["workers"].as_array().unwrap().iter().find(|it| it["worker_id"] == worker).unwrap();
    let g = of("g");
    assert_eq!((&g["status"], &g["tier"], &g["location"]), (&json!("healthy"), &json!(1), &json!("EU")));
    assert_eq!(g["tunnel_url"], "https://hedge.example.org/worker/g");
    assert_eq!((&g["registered_at"], &g["last_heartbeat"]), (&json!(NOW_MS - 19_000), &json!(NOW_MS - 10_000)));
    assert_eq!((&of("lost")["status"], &of("lost")["worker_type"]), (&json!("away"), &json!("cpu")));
    // Its coordinator was heard of last when its lease ran out.
    assert_eq!(of("lost")["last_heartbeat"], NOW_MS - 20_000);
    assert_eq!(of(&id(4).to_string())["status"], "away");
    let stats = federation.json(|views| views.admin_stats());
    assert_eq!(
        stats,
        json!({
            "total_workers": 5, "healthy_workers": 3, "by_tier": {"1": 3, "2": 1, "3": 0, "4": 1}, "total_tasks_completed": 7,
        })
    );
}

#[test]
fn an_entry_without_a_desk_tells_the_same_by_the_record_alone() {
    let federation = federation();
    let [with, without] = [true, false].map(|desk| federation.ask(desk, |views| views.admin_workers()));
    assert_eq!((with.total, with.healthy), (without.total, without.healthy));
    let g = without.workers.iter().find(|it| it.worker_id == "g").unwrap();
    // The load is what was said last, and that its coordinator is there means that it is alive.
    assert_eq!((g.load, g.last_heartbeat, g.registered_at), (0.0, NOW_MS, NOW_MS));
}

#[test]
fn coordinators_are_those_that_are_there_and_the_edges_that_were_told_so() {
    let page = federation().json(|views| views.admin_coordinators());
    let ids: Vec<&str> = page.as_array().unwrap().iter().map(|it| it["worker_id"].as_str().unwrap()).collect();
    let mut expected = [id(1), id(2)].map(|id| id.to_string()).to_vec();
    expected.sort();
    expected.push("e".into());
    assert_eq!(ids, expected);
    assert_eq!(page[0]["tunnel_url"], BASE);
    assert_eq!((&page[0]["location"], &page[0]["last_seen"]), (&json!("EU"), &json!(NOW_MS)));
    assert_eq!(page[2]["tunnel_url"], "https://hedge.example.org/worker/e");
}

#[test]
fn seeds_are_coordinators_behind_the_address_of_whoever_answers() {
    let answer = federation().json(|views| views.dht_bootstrap());
    assert_eq!((&answer["count"], &answer["ttl"]), (&json!(2), &json!(60)));
    assert_eq!((&answer["seeds"][0]["tunnel_url"], &answer["seeds"][0]["dht_port"]), (&json!(BASE), &json!(443)));
    let nobody = Federation { said: Said::new(), desk: Desk::new(at(0), id(1), DeskConfig::default()) };
    assert_eq!(nobody.json(|views| views.dht_bootstrap()), json!({"seeds": [], "ttl": 60, "count": 0}));
}

#[test]
fn the_topology_joins_workers_to_their_coordinators() {
    let topology = federation().json(|views| views.dht_topology());
    assert_eq!(
        topology["stats"],
        json!({
            "total_nodes": 7, "coordinators": 2, "workers": 5, "healthy_workers": 3, "connections": 3,
        })
    );
    assert_eq!(topology["nodes"].as_array().unwrap().len(), 7);
    let connections = topology["connections"].as_array().unwrap();
    assert!(connections.contains(&json!({"source_id": "g", "target_id": id(1).to_string(), "type": "guest"})));
    let g = topology["nodes"].as_array().unwrap().iter().find(|it| it["id"] == "g").unwrap();
    assert_eq!((&g["node_id"], &g["node_type"], &g["status"]), (&json!("g"), &json!("gpu"), &json!("healthy")));
    assert_eq!(federation().json(|views| views.dht_stats()), topology);
}

#[test]
fn a_node_that_does_both_stands_in_the_topology_once() {
    let mut federation = federation();
    federation.said.say(at(62), 6, &node(Roles::Both, &["embed"]));
    federation.said.say(at(62), 6, &Body::Lease(Lease { ttl: SECOND * 60 }));
    let topology = federation.ask(true, |views| views.dht_topology());
    let six = id(6).to_string();
    let types: Vec<&str> = topology.nodes.iter().filter(|it| it.id == six).map(|it| it.node_type.as_str()).collect();
    assert_eq!(types, ["coordinator"]);
    assert_eq!((topology.stats.total_nodes, topology.stats.workers), (8, 6));
}

#[test]
fn no_answer_holds_a_volunteers_address_or_host_name() {
    let federation = federation();
    let answers = [
        federation.json(|views| views.health()),
        federation.json(|views| views.discover(&name("llm")).unwrap()),
        federation.json(|views| views.find(&name("llm")).unwrap()),
        federation.json(|views| views.services_list()),
        federation.json(|views| views.admin_workers()),
        federation.json(|views| views.admin_coordinators()),
        federation.json(|views| views.admin_stats()),
        federation.json(|views| views.dht_bootstrap()),
        federation.json(|views| views.dht_topology()),
    ];
    // They are there to be kept back.
    let kept: Vec<String> = federation.said.registry.guests().map(|view| format!("{:?}", view.guest)).collect();
    assert!(kept.concat().contains("gpu-box-7") && kept.concat().contains("secret-tunnel"));
    for answer in answers {
        for secret in SECRETS {
            assert!(!answer.to_string().contains(secret), "{secret} in {answer}");
        }
    }
}

#[test]
fn a_load_that_makes_no_sense_is_a_full_one() {
    let federation = federation();
    for (load, shown) in [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (-1.0, 0.0), (7.0, 1.0), (0.123_456, 0.123)] {
        let node_load = |_: &NodeId| Some(load);
        let found = federation.ask(true, |views| Views { node_load: &node_load, ..*views }.discover(&name("embed")));
        assert_eq!(found.unwrap().recommended.load, shown, "{load}");
    }
}

#[test]
fn every_call_that_only_reads_is_answered_in_json_and_no_other() {
    let federation = federation();
    let embed: ServiceName = "embed".parse().unwrap();
    for call in [
        Call::Health,
        Call::DhtBootstrap,
        Call::Discover(embed.clone()),
        Call::Find(embed),
        Call::ServicesList,
        Call::AdminWorkers,
        Call::AdminCoordinators,
        Call::AdminStats,
        Call::DhtTopology,
        Call::DhtStats,
        Call::Register,
        Call::Heartbeat,
        Call::EdgeRegister,
        Call::EdgeHeartbeat,
        Call::Unregister(worker_id("g")),
    ] {
        let answer = federation.ask(false, |views| views.answer(&call)).unwrap();
        assert_eq!(answer.is_none(), call.writes(), "{call:?}");
        if let Some(answer) = answer {
            let value: Value = serde_json::from_slice(&answer).unwrap();
            assert!(value.is_object() || value.is_array(), "{call:?}: {value}");
        }
    }
    let nobody = federation.ask(false, |views| views.answer(&Call::Find("nobody".parse().unwrap())));
    assert!(matches!(nobody, Err(ContractError::NobodyOffers { .. })));
}
