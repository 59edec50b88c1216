//! What an agent says of its hardware. A record has little room for it, so some of it may have to go.

use serde_json::{Map, Value};

use super::fields;
use crate::guest::is_refused;

/// The fields of the contract, the ones that clients look at first. They are kept before any others.
pub(crate) const KNOWN: [&str; 14] = [
    "worker_type",
    "cpu_cores",
    "ram",
    "has_gpu",
    "gpu_type",
    "gpu_memory",
    "hostname",
    "has_public_ip",
    "public_ip",
    "low_latency",
    "latency_ms",
    "has_edge",
    "has_storage",
    "location",
];

/// Capabilities, with whatever else was in the body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Capabilities(Map<String, Value>);

impl Capabilities {
    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Keeps fields from beside the capabilities among them, where there is none of the name.
    pub(super) fn add(&mut self, rest: Map<String, Value>) {
        for (field, value) in rest {
            if !value.is_null() {
                self.0.entry(field).or_insert(value);
            }
        }
    }

    /// A field as text; nothing where it is empty, missing, or no plain value.
    pub(super) fn text(&self, field: &str) -> Option<String> {
        self.0.get(field).and_then(fields::text).filter(|text| !text.is_empty())
    }

    /// Whether a field says yes.
    pub(super) fn is_true(&self, field: &str) -> bool {
        self.text(field).is_some_and(|text| matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "yes"))
    }

    /// As JSON text of at most `max_bytes`, which is 2 at least. What does not fit is left out, the largest first: of the
    /// fields that the contract does not know, and only when all of those are gone of those that it does.
    pub fn fit(&self, max_bytes: usize) -> String {
        let known = |field: &str| KNOWN.iter().position(|known| *known == field).unwrap_or(KNOWN.len());
        let mut fields: Vec<(usize, String)> = self
            .0
            .iter()
            .map(|(field, value)| (known(field), plain(&format!("{}:{value}", Value::from(field.as_str())))))
            .collect();
        // The small ones are chosen first; those of a rank are then in the order of their text, whatever a map's order is.
        fields.sort_unstable_by_key(|(rank, text)| (*rank == KNOWN.len(), text.len(), text.clone()));
        // Each takes its own length and a comma; in the place of the last comma the closing brace stands.
        let mut used = 1;
        let fits = |(_, text): &&(usize, String)| {
            used += text.len() + 1;
            used <= max_bytes
        };
        let fitting = fields.iter().take_while(fits).count();
        fields.truncate(fitting);
        fields.sort_unstable();
        let texts: Vec<String> = fields.into_iter().map(|(_, text)| text).collect();
        format!("{{{}}}", texts.join(","))
    }
}

/// JSON text in which every character that a record may not hold is escaped. Such characters can only be in its strings,
/// and none of them needs more than one `\u`.
fn plain(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for c in json.chars() {
        if is_refused(c) {
            plain.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn capabilities(value: Value) -> Capabilities {
        match value {
            Value::Object(fields) => Capabilities(fields),
            _ => panic!("no object"),
        }
    }

    #[test]
    fn what_fits_is_kept_whole() {
        let all = json!({"ram": "62GB", "cpu_cores": 16, "x": {"y": [1, null]}});
        let text = capabilities(all.clone()).fit(640);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), all);
        assert_eq!(capabilities(json!({})).fit(2), "{}");
    }

    #[test]
    fn the_largest_unknown_field_goes_first_and_known_ones_last() {
        let all = capabilities(json!({
            "ram": "62GB", "hostname": "h".repeat(60), "a": "a".repeat(40), "b": "b".repeat(50), "c": 1,
        }));
        let kept = |max_bytes| {
            let text = all.fit(max_bytes);
            assert!(text.len() <= max_bytes.max(2));
            let fields: Map<String, Value> = serde_json::from_str(&text).unwrap();
            let mut fields: Vec<String> = fields.into_iter().map(|(field, _)| field).collect();
            fields.sort();
            fields.join(" ")
        };
        assert_eq!(kept(640), "a b c hostname ram");
        assert_eq!(kept(150), "a c hostname ram");
        assert_eq!(kept(100), "c hostname ram");
        assert_eq!(kept(88), "hostname ram");
        assert_eq!(kept(40), "ram");
        assert_eq!(kept(2), "");
    }

    #[test]
    fn characters_that_a_record_may_not_hold_are_escaped_and_mean_the_same() {
        let all = json!({"ram": "a\u{7f}\u{85}\u{202e}\n\u{2028}ä"});
        let text = capabilities(all.clone()).fit(640);
        assert!(text.chars().all(|c| !c.is_control() && c != '\u{202e}' && c != '\u{2028}'), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), all);
    }

    proptest! {
        #[test]
        fn whatever_is_kept_is_json_and_within_the_bound(
            fields in proptest::collection::btree_map("[a-z\u{80}\"]{0,6}|ram|hostname", "\\PC{0,20}|\u{9f}{0,9}", 0..12),
            max_bytes in 2..300_usize,
        ) {
            let all = Capabilities(fields.into_iter().map(|(field, text)| (field, Value::from(text))).collect());
            let text = all.fit(max_bytes);
            prop_assert!(text.len() <= max_bytes);
            let kept: Map<String, Value> = serde_json::from_str(&text).unwrap();
            for (field, value) in &kept {
                prop_assert_eq!(all.0.get(field), Some(value));
            }
        }
    }
}
