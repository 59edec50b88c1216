//! Bodies as agents send them, and as nobody should.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn registration(body: Value) -> Result<Registration, ContractError> {
    Registration::parse(body.to_string().as_bytes())
}

fn edge(body: Value) -> Result<Registration, ContractError> {
    Registration::parse_edge(body.to_string().as_bytes())
}

fn heartbeat(body: Value) -> Result<Heartbeat, ContractError> {
    Heartbeat::parse(body.to_string().as_bytes())
}

/// The whole of what an agent says of itself, by the name of the field that is wrong.
fn refused<T: std::fmt::Debug>(result: Result<T, ContractError>) -> (u16, String) {
    let error = result.unwrap_err();
    let field = match &error {
        ContractError::Missing { field } => (*field).to_owned(),
        ContractError::Field { field, .. } => field.clone(),
        _ => String::new(),
    };
    assert!(error.to_string().contains(&field));
    (error.status(), field)
}

#[test]
fn a_registration_of_an_existing_agent_is_read() {
    let body = json!({
        "worker_id": "gpu-box-7", "worker_type": "gpu", "tunnel_url": "http://:8000", "vpn_ip": null, "port": 8000,
        "location": "EU", "services": ["vision-ocr", "llm-inference", "vision-ocr"],
        "capabilities": {
            "hostname": "gpu-box-7", "cpu_cores": 16, "ram": "62GB", "has_gpu": true, "gpu_type": "RTX",
            "gpu_memory": "24576 MiB", "worker_type": "gpu", "has_public_ip": false, "public_ip": null,
            "low_latency": true, "latency_ms": 12.5, "has_edge": false, "has_storage": false, "cuda": {"version": "12.4"},
        },
    });
    let read = registration(body).unwrap();
    assert_eq!(read.worker_id.as_ref().unwrap().as_str(), "gpu-box-7");
    assert_eq!((read.worker_type.as_str(), read.kind()), ("gpu", WorkerType::Gpu));
    assert_eq!((read.tunnel_url.as_str(), read.location.as_str()), ("http://:8000", "EU"));
    let names: Vec<&str> = read.services.iter().map(ServiceName::as_str).collect();
    assert_eq!(names, ["llm-inference", "vision-ocr"]);
    let kept: Value = serde_json::from_str(&read.capabilities.fit(640)).unwrap();
    assert_eq!((&kept["gpu_memory"], &kept["cuda"]["version"]), (&json!("24576 MiB"), &json!("12.4")));
    assert_eq!((&kept["port"], kept.get("vpn_ip")), (&json!(8000), None));
}

#[test]
fn what_may_be_missing_may_be_missing_null_or_empty() {
    for body in [
        json!({"capabilities": {}}),
        json!({"capabilities": {}, "worker_id": "", "worker_type": "", "tunnel_url": "", "location": "", "services": []}),
        json!({"capabilities": {}, "worker_id": null, "worker_type": null, "tunnel_url": null, "services": null}),
        json!({"capabilities": {}, "worker_id": "  ", "worker_type": "auto"}),
    ] {
        let read = registration(body).unwrap();
        assert_eq!((read.worker_id, read.worker_type.as_str(), read.services.len()), (None, "cpu", 0));
    }
}

#[test]
fn a_worker_that_does_not_say_what_it_is_is_what_its_hardware_is() {
    let kind = |capabilities: Value| registration(json!({"capabilities": capabilities})).unwrap().worker_type;
    assert_eq!(kind(json!({"has_gpu": true, "has_storage": true})), "gpu");
    assert_eq!(kind(json!({"has_gpu": "True"})), "gpu");
    assert_eq!(kind(json!({"has_gpu": 0, "has_storage": 1})), "storage");
    assert_eq!(kind(json!({"has_edge": true})), "edge");
    assert_eq!(kind(json!({"worker_type": "Storage", "has_gpu": true})), "storage");
    assert_eq!(kind(json!({"worker_type": "auto", "has_gpu": true})), "gpu");
}

#[test]
fn other_forms_of_the_same_are_understood() {
    let read = registration(json!({
        "worker_id": 17, "worker_type": "TPU", "location": 3, "services": "ocr, llm,,", "capabilities": {},
    }));
    let read = read.unwrap();
    assert_eq!(read.worker_id.as_ref().unwrap().as_str(), "17");
    assert_eq!((read.worker_type.as_str(), read.kind(), read.location.as_str()), ("tpu", WorkerType::Cpu, "3"));
    assert_eq!(read.services.iter().map(ServiceName::as_str).collect::<Vec<_>>(), ["llm", "ocr"]);
    let read = registration(json!({"services": [{"name": "a", "port": 1}, "b"], "capabilities": {"location": "EU"}}));
    let read = read.unwrap();
    assert_eq!((read.services.len(), read.location.as_str()), (2, "EU"));
}

#[test]
fn what_must_be_there_is_named_when_it_is_not() {
    assert_eq!(refused(registration(json!({}))), (422, "capabilities".into()));
    assert_eq!(refused(registration(json!({"capabilities": null}))), (422, "capabilities".into()));
    assert_eq!(refused(heartbeat(json!({"status": "healthy"}))), (422, "worker_id".into()));
    assert_eq!(refused(heartbeat(json!({"worker_id": ""}))), (422, "worker_id".into()));
    assert_eq!(refused(edge(json!({"url": "x"}))), (422, "worker_id".into()));
    assert_eq!(refused(edge(json!({"worker_id": "e"}))), (422, "tunnel_url".into()));
}

#[test]
fn what_cannot_be_is_named() {
    let with = |field: &str, value: Value| {
        let mut body = json!({"capabilities": {}});
        body[field] = value;
        refused(registration(body))
    };
    assert_eq!(with("capabilities", json!([])), (422, "capabilities".into()));
    assert_eq!(with("capabilities", json!("x")), (422, "capabilities".into()));
    assert_eq!(with("worker_id", json!({})), (422, "worker_id".into()));
    assert_eq!(with("worker_id", json!("a/b")), (422, "worker_id".into()));
    assert_eq!(with("worker_id", json!("x".repeat(65))), (422, "worker_id".into()));
    assert_eq!(with("worker_type", json!(["gpu"])), (422, "worker_type".into()));
    assert_eq!(with("worker_type", json!("x".repeat(33))), (422, "worker_type".into()));
    assert_eq!(with("worker_type", json!("a b")), (422, "worker_type".into()));
    assert_eq!(with("services", json!(7)), (422, "services".into()));
    assert_eq!(with("services", json!(["a", "b c"])), (422, "services[1]".into()));
    assert_eq!(with("services", json!([["a"]])), (422, "services[0]".into()));
    assert_eq!(with("tunnel_url", json!({"url": 1})), (422, "tunnel_url".into()));
    assert_eq!(refused(heartbeat(json!({"worker_id": "w", "current_load": "much"}))), (422, "current_load".into()));
    assert_eq!(refused(heartbeat(json!({"worker_id": "w", "current_load": "NaN"}))), (422, "current_load".into()));
}

#[test]
fn a_body_that_is_no_object_or_too_long_is_refused() {
    for body in [&b""[..], b"  ", b"{", b"[]", b"null", b"\"x\"", b"7", b"\xff\xfe", b"{}{}", b"{\"a\":\"\xff\"}"] {
        let error = Registration::parse(body).unwrap_err();
        assert_eq!((error.status(), error.code()), (400, "not-an-object"), "{body:?}");
    }
    let deep = [b"{\"a\":".to_vec(), b"[".repeat(10_000)].concat();
    assert_eq!(Heartbeat::parse(&deep).unwrap_err().status(), 400);
    let body = |bytes: usize| format!("{{\"worker_id\":\"w\",\"x\":\"{}\"}}", "x".repeat(bytes - 24)).into_bytes();
    assert_eq!(body(BODY_BYTES_MAX).len(), BODY_BYTES_MAX);
    assert!(Heartbeat::parse(&body(BODY_BYTES_MAX)).is_ok());
    assert_eq!(Heartbeat::parse(&body(BODY_BYTES_MAX + 1)).unwrap_err().status(), 413);
}

#[test]
fn an_edge_registers_with_either_name_of_its_url() {
    let read = edge(json!({
        "worker_id": "e", "worker_type": "cpu", "url": "https://e.example", "services": ["coordinator"],
        "capabilities": {"location": "EU"}, "role": "edge_coordinator",
    }));
    let read = read.unwrap();
    assert_eq!(
        (read.kind(), read.tunnel_url.as_str(), read.location.as_str()),
        (WorkerType::Edge, "https://e.example", "EU")
    );
    let read = edge(json!({"worker_id": "e", "tunnel_url": "https://t.example", "url": "https://e.example"})).unwrap();
    assert_eq!(read.tunnel_url, "https://t.example");
    assert_eq!(edge(json!({"worker_id": "e", "tunnel_url": null})).unwrap().tunnel_url, "");
}

#[test]
fn a_load_is_a_fraction_up_to_one_and_a_percentage_above() {
    let load = |value: Value| heartbeat(json!({"worker_id": "w", "current_load": value})).unwrap().load_percent;
    for (value, percent) in [
        (json!(0), 0),
        (json!(0.256), 26),
        (json!(1), 100),
        (json!(1.0), 100),
        (json!(42.4), 42),
        (json!("55%"), 55),
        (json!("0.5"), 50),
        (json!(1e300), 100),
        (json!(-3), 0),
    ] {
        assert_eq!(load(value.clone()), Some(percent), "{value}");
    }
    assert_eq!(load(Value::Null), None);
}

#[test]
fn only_words_for_trouble_are_trouble() {
    let status = |word: &str| heartbeat(json!({"worker_id": "w", "status": word})).unwrap().status;
    for word in ["healthy", "busy", "Loading", ""] {
        assert_eq!(status(word), GuestStatus::Healthy, "{word}");
    }
    for word in ["degraded", "Degraded", "unhealthy"] {
        assert_eq!(status(word), GuestStatus::Degraded, "{word}");
    }
}

proptest! {
    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..64), text in "[{}\\[\\]\":,a-z0-9_ ]{0,48}") {
        for body in [&body[..], text.as_bytes()] {
            let _ = (Registration::parse(body), Registration::parse_edge(body), Heartbeat::parse(body));
        }
    }
}
