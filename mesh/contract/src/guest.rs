//! What a registration becomes: the record that a coordinator signs for an agent, within the bounds of a record.

use hedgerow_proto::id::ServiceName;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Body, Guest, GuestDetails, GuestStatus};
use hedgerow_proto::registry::Registry;
use hedgerow_proto::wire;

use crate::error::ContractError;
use crate::request::Registration;
use crate::url::NotRoutable;
use crate::worker_id::WorkerId;

/// What of a signed record is neither its subject nor its content, in bytes: the header and the signature. A test signs the
/// largest guest that there can be and so holds this to the truth.
const ENVELOPE_BYTES: usize = 91 + 64;
/// How much longer the length in front of a text gets when the text is longer than 250 bytes.
const LONGER_LENGTH_BYTES: usize = 2;

/// The record's content for an agent that has just registered, with these services.
///
/// A registration is not refused for what its agent says beside the point: a location is cut to its limit, a URL that is
/// too long or that holds characters which no URL has is left out (it would be no route anyway), and capabilities give way
/// field by field until the record fits. Only too many services are refused, since leaving some out would mean that
/// nobody is sent to them.
pub(crate) fn details(
    worker_id: &WorkerId,
    registration: &Registration,
    services: Vec<ServiceName>,
    limits: &Limits,
) -> Result<GuestDetails, ContractError> {
    if worker_id.as_str().len() > limits.guest_id_bytes_max {
        let why = format!("is longer than the limit of {} bytes", limits.guest_id_bytes_max);
        return Err(ContractError::field("worker_id", why));
    }
    if registration.worker_type.len() > limits.guest_type_bytes_max {
        let why = format!("is longer than the limit of {} bytes", limits.guest_type_bytes_max);
        return Err(ContractError::field("worker_type", why));
    }
    if services.len() > limits.services_per_node_max {
        let why =
            format!("are {} with those assigned, over the limit of {}", services.len(), limits.services_per_node_max);
        return Err(ContractError::field("services", why));
    }
    let mut details = GuestDetails {
        worker_type: registration.worker_type.clone(),
        tunnel_url: url(&registration.tunnel_url, limits),
        location: cut(&registration.location, limits.location_bytes_max),
        services,
        capabilities: String::new(),
        status: GuestStatus::Healthy,
        load_percent: 0,
    };
    let used = ENVELOPE_BYTES + worker_id.as_str().len() + wire::encode(&details).len() + LONGER_LENGTH_BYTES;
    let room = limits.record_bytes_max.saturating_sub(used).min(limits.guest_capabilities_bytes_max);
    if room < 2 {
        return Err(ContractError::field("services", "are too long together for the record of a worker: offer fewer"));
    }
    details.capabilities = registration.capabilities.fit(room);
    Ok(details)
}

/// The tombstone of a guest that goes from one coordinator to another: what was known of it stays in it, so that whoever
/// hears of the guest while nobody holds it knows it.
pub(crate) fn handed_over(worker_id: &WorkerId, details: GuestDetails) -> Body {
    let details = GuestDetails { status: GuestStatus::Gone, ..details };
    Body::Guest(Guest { worker_id: worker_id.to_string(), details })
}

/// What the tombstones of a guest have kept of it: nothing if one of them says that it is really gone. Every guest has a
/// type, and the tombstone of one that is really gone has none.
pub(crate) fn left_behind(registry: &Registry, worker_id: &WorkerId) -> Option<GuestDetails> {
    let mut left = None;
    for guest in registry.gone_guests(worker_id.as_str()) {
        if guest.details.worker_type.is_empty() {
            return None;
        }
        left = Some(guest.details.clone());
    }
    left
}

/// The tombstone of a guest: its id, and nothing else of it.
pub(crate) fn gone(worker_id: &WorkerId) -> Body {
    let details = GuestDetails {
        worker_type: String::new(),
        tunnel_url: String::new(),
        location: String::new(),
        services: Vec::new(),
        capabilities: String::new(),
        status: GuestStatus::Gone,
        load_percent: 0,
    };
    Body::Guest(Guest { worker_id: worker_id.to_string(), details })
}

fn url(text: &str, limits: &Limits) -> String {
    let text = text.trim();
    let plain = text.len() <= limits.guest_url_bytes_max && text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { text.to_owned() } else { String::new() }
}

/// The beginning of a text that a person reads, without characters that a record may not hold.
fn cut(text: &str, max_bytes: usize) -> String {
    let mut cut = String::new();
    for c in text.chars().filter(|c| !is_refused(*c)) {
        if cut.len() + c.len_utf8() > max_bytes {
            break;
        }
        cut.push(c);
    }
    cut
}

/// Characters that no text of a record holds: they would move the cursor of whoever reads it, or turn the writing round.
pub(crate) fn is_refused(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// Why no requests come to an agent by its URL, in words for the answer to its registration.
pub(crate) fn not_routable(why: NotRoutable) -> String {
    format!("registered, but no requests are sent to it: {why}")
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::id::FederationId;
    use hedgerow_proto::key::SecretKey;
    use hedgerow_proto::record::{Signed, Version};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn sign(worker_id: &WorkerId, details: GuestDetails) -> Signed {
        let body = Body::Guest(Guest { worker_id: worker_id.to_string(), details });
        let version = Version { epoch: u64::MAX, seq: u64::MAX };
        Signed::sign(&SecretKey::from_seed([1; 32]), FederationId([2; 32]), u64::MAX, version, &body).unwrap()
    }

    fn registration(body: &Value) -> Registration {
        Registration::parse(body.to_string().as_bytes()).unwrap()
    }

    fn services(count: usize, bytes: usize) -> Vec<ServiceName> {
        (0..count).map(|n| ServiceName::new(&format!("s{n:0width$}", width = bytes - 1)).unwrap()).collect()
    }

    fn made(body: &Value, services: Vec<ServiceName>) -> Result<(Signed, GuestDetails), ContractError> {
        let worker_id: WorkerId = "w".repeat(WorkerId::BYTES_MAX).parse().unwrap();
        let details = details(&worker_id, &registration(body), services, &Limits::PRODUCTION)?;
        Ok((sign(&worker_id, details.clone()), details))
    }

    #[test]
    fn the_largest_guest_fills_a_record_to_the_last_byte_but_a_few() {
        // Many small fields, so that capabilities can be cut close to the room that there is.
        let many: serde_json::Map<String, Value> = (0..400).map(|n| (format!("k{n}"), json!(1))).collect();
        let body = json!({
            "worker_type": "t".repeat(32), "tunnel_url": "u".repeat(256), "location": "l".repeat(64),
            "capabilities": many,
        });
        let (signed, details) = made(&body, services(5, 60)).unwrap();
        assert_eq!((details.worker_type.len(), details.tunnel_url.len(), details.location.len()), (32, 256, 64));
        assert!((1024 - 12..=1024).contains(&signed.bytes().len()), "{}", signed.bytes().len());
    }

    #[test]
    fn what_is_beside_the_point_gives_way_and_services_do_not() {
        let body = json!({
            "tunnel_url": format!("https://{}", "x".repeat(300)), "location": "ä\u{202e}\n".repeat(60),
            "capabilities": {"ram": "62GB", "notes": "x".repeat(5000)},
        });
        let (_, details) = made(&body, services(3, 20)).unwrap();
        assert_eq!((details.tunnel_url.as_str(), details.location), ("", "ä".repeat(32)));
        assert_eq!(details.capabilities, "{\"ram\":\"62GB\"}");
        for (count, bytes) in [(33, 4), (32, 64)] {
            let error = made(&body, services(count, bytes)).unwrap_err();
            assert_eq!((error.status(), error.code()), (422, "bad-field"));
            assert!(error.to_string().starts_with("\"services\" are"), "{error}");
        }
    }

    #[test]
    fn a_tombstone_can_be_signed() {
        let id: WorkerId = "w".parse().unwrap();
        let Body::Guest(guest) = gone(&id) else { panic!("a guest") };
        sign(&id, guest.details);
    }

    proptest! {
        #[test]
        fn whatever_registers_can_be_signed_or_is_told_what_is_too_much(
            id in "[a-z.@:~_-]{1,64}",
            url in "\\PC{0,90}",
            location in "\\PC{0,40}|\u{85}{0,90}",
            fields in proptest::collection::btree_map("\\PC{0,8}|ram", "\\PC{0,300}|[\u{80}-\u{9f}]{0,60}", 0..8),
            count in 0..33_usize,
            bytes in 4..=64_usize,
        ) {
            let Ok(id) = id.parse::<WorkerId>() else { return Ok(()) };
            let body = json!({"tunnel_url": url, "location": location, "capabilities": fields});
            match details(&id, &registration(&body), services(count, bytes), &Limits::PRODUCTION) {
                Ok(details) => _ = sign(&id, details),
                Err(error) => prop_assert!(count * bytes > 300 && error.status() == 422),
            }
        }
    }
}
