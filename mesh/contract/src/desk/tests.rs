//! One desk and its registry; `handover` and `model` have several that talk to each other.

use hedgerow_proto::id::{FederationId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::Voice;
use hedgerow_proto::record::{Candidacy, Gpu, Guest, Hardware, Lease, NodeRecord, Roles, Signed};
use hedgerow_proto::record::{ServiceHealth, ServiceOffer};
use hedgerow_proto::registry::Source;
use serde_json::{Value, json};

use super::*;

mod handover;
mod model;
mod world;

pub(crate) const FEDERATION: FederationId = FederationId([7; 32]);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn at(seconds: u64) -> Time {
    Time::from_origin(SECOND * 1000 + Duration::from_secs(seconds))
}

pub(crate) fn key(n: u8) -> SecretKey {
    SecretKey::from_seed([n; 32])
}

pub(crate) fn id(n: u8) -> NodeId {
    key(n).id()
}

pub(crate) fn worker_id(text: &str) -> WorkerId {
    text.parse().unwrap()
}

pub(crate) fn node(roles: Roles, services: &[&str]) -> Body {
    let offer =
        |name: &&str| ServiceOffer { name: ServiceName::new(name).unwrap(), capacity: 1, health: ServiceHealth::Up };
    Body::Node(NodeRecord {
        roles,
        location: "EU".into(),
        version: "0.1.0".into(),
        services: services.iter().map(offer).collect(),
        multiaddrs: Vec::new(),
        home: None,
        candidacy: Candidacy::Fixed,
        hardware: Hardware {
            worker_type: WorkerType::Gpu,
            cpu_cores: 8,
            memory_mib: 63_000,
            storage_gib: 0,
            gpu: Some(Gpu { name: "RTX".into(), memory_mib: 24_576 }),
        },
    })
}

/// A registry in which several speak.
pub(crate) struct Said {
    pub(crate) registry: Registry,
    voices: BTreeMap<u8, Voice>,
}

impl Said {
    pub(crate) fn new() -> Self {
        Self { registry: Registry::new(FEDERATION, Limits::PRODUCTION), voices: BTreeMap::new() }
    }

    /// This one says something, at first hand.
    pub(crate) fn say(&mut self, now: Time, n: u8, body: &Body) {
        let voice = self.voices.entry(n).or_insert_with(|| Voice::new(key(n), FEDERATION, 1, 1, Limits::PRODUCTION));
        let signed: Signed = voice.sign(body).unwrap();
        self.registry.insert(now, signed, Source::Direct(None)).unwrap();
    }

    /// A coordinator is there, by its lease.
    pub(crate) fn coordinator(&mut self, now: Time, n: u8) {
        self.say(now, n, &node(Roles::Coordinator, &[]));
        self.say(now, n, &Body::Lease(Lease { ttl: SECOND * 60 }));
    }
}

/// Coordinator 1, which says whatever its desk returns.
struct Office {
    said: Said,
    desk: Desk,
}

impl Office {
    fn new() -> Self {
        let mut said = Said::new();
        said.coordinator(at(0), 1);
        said.registry.meet(at(0), id(1));
        Self { said, desk: Desk::new(at(0), id(1), DeskConfig::default()) }
    }

    fn register(&mut self, now: Time, body: &Value) -> Result<RegisterAnswer, ContractError> {
        let registration = Registration::parse(body.to_string().as_bytes())?;
        self.enter(now, &registration)
    }

    fn enter(&mut self, now: Time, registration: &Registration) -> Result<RegisterAnswer, ContractError> {
        match self.desk.register(now, &self.said.registry, registration, Elsewhere::Ask, || 0xabc)? {
            Registered::Here { say, answer } => {
                self.said.say(now, 1, &say);
                Ok(answer)
            }
            Registered::HeldBy(other) => panic!("held by {other}"),
        }
    }

    /// What was said because of the heartbeat.
    fn heartbeat(&mut self, now: Time, body: &Value) -> Result<Option<Body>, ContractError> {
        let heartbeat = Heartbeat::parse(body.to_string().as_bytes())?;
        let say = match self.desk.heartbeat(now, &self.said.registry, &heartbeat)? {
            Heard::Ok { say } => say,
            Heard::Adopted { say } => Some(say),
            Heard::HeldBy(other) => panic!("held by {other}"),
        };
        if let Some(say) = &say {
            self.said.say(now, 1, say);
        }
        Ok(say)
    }

    fn pass_time(&mut self, now: Time) -> Vec<Body> {
        let say = self.desk.handle_timeout(now, &self.said.registry);
        say.iter().for_each(|body| self.said.say(now, 1, body));
        say
    }

    fn guest(&self, worker_id: &str) -> Option<&Guest> {
        self.said.registry.guest(worker_id).map(|view| view.guest)
    }
}

fn statuses(said: &[Body]) -> Vec<(String, GuestStatus)> {
    let status = |body: &Body| match body {
        Body::Guest(guest) => (guest.worker_id.clone(), guest.details.status),
        other => panic!("{other:?}"),
    };
    said.iter().map(status).collect()
}

fn agent(worker_id: &str) -> Value {
    json!({"worker_id": worker_id, "worker_type": "cpu", "tunnel_url": "http://:8000", "capabilities": {"ram": "8GB"}})
}

#[test]
fn an_agent_registers_and_is_told_what_to_run() {
    let mut office = Office::new();
    let body = json!({
        "worker_id": "w", "worker_type": "cpu", "tunnel_url": "https://a.trycloudflare.com", "location": "EU",
        "services": ["my-own"], "capabilities": {"ram": "62GB"},
    });
    let answer = serde_json::to_value(office.register(at(0), &body).unwrap()).unwrap();
    let expected = json!({
        "status": "registered", "worker_id": "w", "worker_type": "cpu", "tier": 2,
        "assigned_services": ["ner-extraction", "document-processing", "notes-coa"],
        "service_configs": [
            {"name": "ner-extraction", "port": 8108, "priority": 2},
            {"name": "document-processing", "port": 8103, "priority": 2},
            {"name": "notes-coa", "port": 8100, "priority": 3},
        ],
        "routable": true,
        "message": "worker w is registered, with 3 services assigned",
    });
    assert_eq!(answer, expected);
    let details = &office.guest("w").unwrap().details;
    let names: Vec<&str> = details.services.iter().map(ServiceName::as_str).collect();
    assert_eq!(names, ["document-processing", "my-own", "ner-extraction", "notes-coa"]);
    assert_eq!(
        (details.capabilities.as_str(), details.tunnel_url.as_str()),
        ("{\"ram\":\"62GB\"}", "https://a.trycloudflare.com")
    );
}

#[test]
fn an_agent_without_a_tunnel_is_registered_and_told_that_nobody_can_reach_it() {
    let answer = Office::new().register(at(0), &agent("w")).unwrap();
    assert!(!answer.routable && answer.reason.unwrap().contains("it has no host"));
}

#[test]
fn an_agent_without_an_id_gets_one() {
    let mut office = Office::new();
    let answer = office.register(at(0), &json!({"capabilities": {"has_gpu": true}})).unwrap();
    assert_eq!(answer.worker_id, "gpu-0000000000000abc");
    assert!(office.guest(&answer.worker_id).is_some());
}

#[test]
fn an_edge_is_told_that_it_is_one() {
    let mut office = Office::new();
    office.said.coordinator(at(0), 2);
    let answer = office.register(at(0), &json!({"worker_id": "e", "worker_type": "edge", "capabilities": {}})).unwrap();
    assert_eq!((answer.role, answer.tier, answer.total_coordinators), (Some("edge_coordinator"), 4, None));
    assert_eq!(answer.assigned_services.unwrap().len(), 3);
    let body = json!({"worker_id": "e2", "url": "https://e.cfargotunnel.com", "services": ["edge-proxy"]});
    let answer = office.enter(at(0), &Registration::parse_edge(body.to_string().as_bytes()).unwrap()).unwrap();
    // Two coordinators, and two edges.
    let answer = serde_json::to_value(answer).unwrap();
    assert_eq!((&answer["role"], &answer["total_coordinators"]), (&json!("edge_coordinator"), &json!(4)));
    assert_eq!((&answer["status"], answer.get("assigned_services")), (&json!("registered"), None));
    assert_eq!(office.guest("e2").unwrap().details.services.len(), 1);
}

#[test]
fn who_registers_again_replaces_itself_and_does_not_count_against_itself() {
    let mut office = Office::new();
    let gpu = json!({"worker_id": "g", "worker_type": "gpu", "capabilities": {}});
    let first = office.register(at(0), &gpu).unwrap();
    let again = office.register(at(1), &gpu).unwrap();
    assert_eq!((first.assigned_services.as_ref().unwrap().len(), &first), (6, &again));
    assert_eq!(office.desk.len(), 1);
    let other = office.register(at(1), &json!({"worker_id": "h", "worker_type": "gpu", "capabilities": {}})).unwrap();
    assert_eq!(other.assigned_services.unwrap().len(), 1);
}

#[test]
fn a_native_node_is_never_registered_or_unregistered_by_others_and_its_heartbeats_cost_nothing() {
    let mut office = Office::new();
    office.said.say(at(0), 9, &node(Roles::Worker, &["embed"]));
    let native = id(9).to_string();
    for id in [native.clone(), native.to_uppercase()] {
        let error = office.register(at(0), &agent(&id)).unwrap_err();
        assert_eq!((error.status(), error.code()), (409, "native-node"));
        let error = office.desk.unregister(&office.said.registry, &worker_id(&id)).unwrap_err();
        assert_eq!(error.status(), 409);
        assert_eq!(office.heartbeat(at(1), &json!({"worker_id": id})), Ok(None));
    }
    // An id that only looks like a node's is an id like any other.
    office.register(at(0), &agent(&id(8).to_string())).unwrap();
    assert_eq!(office.desk.len(), 1);
}

#[test]
fn a_desk_speaks_for_as_many_as_the_registry_takes_and_refuses_the_rest_by_name() {
    let mut office = Office::new();
    let limits = Limits { guests_per_sponsor_max: 3, ..Limits::PRODUCTION };
    office.said.registry = Registry::new(FEDERATION, limits);
    for n in 0..3 {
        office.register(at(0), &agent(&format!("w{n}"))).unwrap();
    }
    let error = office.register(at(0), &agent("w3")).unwrap_err();
    assert_eq!((error.status(), error.code()), (503, "coordinator-full"));
    assert!(error.retry_after().is_some() && error.to_string().contains("3 workers"));
    office.register(at(0), &agent("w2")).unwrap();
    let Ok(Unregistered::Done { say: Some(say), .. }) = office.desk.unregister(&office.said.registry, &worker_id("w0"))
    else {
        panic!("it was held")
    };
    office.said.say(at(1), 1, &say);
    office.register(at(1), &agent("w3")).unwrap();
    assert_eq!(office.said.registry.guest_claims().count(), 3);
}

#[test]
fn heartbeats_are_said_only_when_there_is_news() {
    let mut office = Office::new();
    office.register(at(0), &agent("w")).unwrap();
    let said = |office: &mut Office, seconds, load: Value, status: &str| {
        let body = json!({"worker_id": "w", "current_load": load, "status": status});
        office.heartbeat(at(seconds), &body).unwrap().is_some()
    };
    assert!(!said(&mut office, 10, json!(0.2), "healthy"));
    // It has moved by enough, too soon after the last record.
    assert!(!said(&mut office, 20, json!(0.9), "healthy"));
    assert!(said(&mut office, 30, json!(0.9), "healthy"));
    assert_eq!(office.guest("w").unwrap().details.load_percent, 90);
    assert!(!said(&mut office, 60, json!(0.66), "healthy"));
    assert!(said(&mut office, 70, json!(0.65), "healthy"));
    // A status is said at once, and the load with it.
    assert!(said(&mut office, 71, json!(0.6), "degraded"));
    assert_eq!(office.guest("w").unwrap().details.load_percent, 60);
    assert!(!said(&mut office, 72, Value::Null, "degraded"));
    assert!(said(&mut office, 73, Value::Null, "healthy"));
    let seen = office.desk.seen("w").unwrap();
    assert_eq!((seen.since, seen.heard_at, seen.load_percent), (at(0), at(73), 60));
}

#[test]
fn silence_degrades_after_five_minutes_and_ends_after_ten() {
    let mut office = Office::new();
    office.register(at(0), &agent("w")).unwrap();
    office.heartbeat(at(100), &json!({"worker_id": "w"})).unwrap();
    assert_eq!(office.pass_time(at(399)), []);
    assert_eq!(office.desk.poll_timeout(), (at(400), Wake::HeartbeatOverdue));
    assert_eq!(statuses(&office.pass_time(at(400))), [("w".into(), GuestStatus::Degraded)]);
    assert_eq!(office.pass_time(at(500)), []);
    // It was only loading its models.
    let news = office.heartbeat(at(550), &json!({"worker_id": "w"})).unwrap();
    assert_eq!(statuses(&[news.unwrap()]), [("w".into(), GuestStatus::Healthy)]);
    assert_eq!(statuses(&office.pass_time(at(850))), [("w".into(), GuestStatus::Degraded)]);
    assert_eq!(office.pass_time(at(1149)), []);
    assert_eq!(office.desk.poll_timeout(), (at(1150), Wake::WorkerTimesOut));
    assert_eq!(statuses(&office.pass_time(at(1150))), [("w".into(), GuestStatus::Gone)]);
    assert!(office.desk.is_empty() && office.guest("w").is_none());
    assert_eq!(office.heartbeat(at(1151), &json!({"worker_id": "w"})).unwrap_err().status(), 404);
}

#[test]
fn the_timers_are_the_operators() {
    let mut office = Office::new();
    let config = DeskConfig { heartbeat_timeout: SECOND * 2, worker_timeout: SECOND * 3, ..DeskConfig::default() };
    office.desk = Desk::new(at(0), id(1), config);
    office.register(at(0), &agent("w")).unwrap();
    assert_eq!(statuses(&office.pass_time(at(2))), [("w".into(), GuestStatus::Degraded)]);
    assert_eq!(statuses(&office.pass_time(at(3))), [("w".into(), GuestStatus::Gone)]);
}

#[test]
fn after_a_suspend_nobody_was_silent() {
    let mut office = Office::new();
    office.register(at(0), &agent("w")).unwrap();
    office.desk.suspended(at(5000));
    assert_eq!(office.pass_time(at(5000)), []);
    assert_eq!(statuses(&office.pass_time(at(5300))), [("w".into(), GuestStatus::Degraded)]);
}

#[test]
fn who_unregisters_is_gone_and_unknown_from_then_on() {
    let mut office = Office::new();
    office.register(at(0), &agent("w")).unwrap();
    let done = office.desk.unregister(&office.said.registry, &worker_id("w")).unwrap();
    let Unregistered::Done { say: Some(say), answer, .. } = done else { panic!("{done:?}") };
    assert_eq!(serde_json::to_value(&answer).unwrap()["status"], "unregistered");
    office.said.say(at(1), 1, &say);
    assert!(office.guest("w").is_none());
    let error = office.desk.unregister(&office.said.registry, &worker_id("w")).unwrap_err();
    assert_eq!((error.status(), error.code()), (404, "unknown-worker"));
}

#[test]
fn after_a_restart_a_coordinator_holds_whom_it_held() {
    let mut office = Office::new();
    office.register(at(0), &agent("w")).unwrap();
    office.register(at(0), &agent("gone")).unwrap();
    let gone = guest::gone(&worker_id("gone"));
    office.said.say(at(1), 1, &gone);
    office.desk = Desk::new(at(100), id(1), DeskConfig::default());
    assert_eq!(office.desk.resume(at(100), &office.said.registry), 1);
    assert_eq!(office.desk.resume(at(100), &office.said.registry), 0);
    assert_eq!(office.heartbeat(at(101), &json!({"worker_id": "w"})), Ok(None));
    // Its silence counts from then on.
    assert_eq!(office.desk.poll_timeout().0, at(130));
    office.pass_time(at(400));
    assert_eq!(statuses(&office.pass_time(at(401))), [("w".into(), GuestStatus::Degraded)]);
}

#[test]
fn a_worker_that_this_coordinator_alone_spoke_for_is_taken_up_again_by_its_heartbeat() {
    let mut office = Office::new();
    office.register(at(0), &agent("w")).unwrap();
    // Nobody has called resume.
    office.desk = Desk::new(at(100), id(1), DeskConfig::default());
    assert!(office.heartbeat(at(101), &json!({"worker_id": "w", "current_load": 0.5})).unwrap().is_some());
    assert_eq!(office.guest("w").unwrap().details.load_percent, 50);
    assert_eq!(office.guest("w").unwrap().details.capabilities, "{\"ram\":\"8GB\"}");
}

#[test]
fn a_worker_of_which_all_have_let_go_is_taken_up_from_what_they_left_behind_unless_it_is_really_gone() {
    let mut office = Office::new();
    office.said.coordinator(at(0), 2);
    let details = guest::details(
        &worker_id("w"),
        &Registration::parse(agent("w").to_string().as_bytes()).unwrap(),
        vec![ServiceName::new("llm").unwrap()],
        &Limits::PRODUCTION,
    );
    let handed_over = guest::handed_over(&worker_id("w"), details.unwrap());
    office.said.say(at(1), 2, &handed_over);
    let body = json!({"worker_id": "w"});
    assert_eq!(statuses(&[office.heartbeat(at(2), &body).unwrap().unwrap()]), [("w".into(), GuestStatus::Healthy)]);
    assert_eq!(office.guest("w").unwrap().details.services.len(), 1);
    office.desk.unregister(&office.said.registry, &worker_id("w")).unwrap();
    office.said.say(at(3), 1, &guest::gone(&worker_id("w")));
    assert_eq!(office.heartbeat(at(4), &body).unwrap_err().status(), 404);
}
