//! The fields of a JSON object, taken one by one: each in any form that means the same.

use hedgerow_proto::id::ServiceName;
use serde_json::{Map, Value};

use super::BODY_BYTES_MAX;
use crate::error::{ContractError, excerpt};

/// What of an object has not been taken yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ContractError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(ContractError::TooLarge { max_bytes: BODY_BYTES_MAX });
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(other) => Err(ContractError::NotAnObject(format!("it is {}", kind(&other)))),
            Err(_) if body.trim_ascii().is_empty() => Err(ContractError::NotAnObject("it is empty".into())),
            Err(error) => Err(ContractError::NotAnObject(format!("it is not JSON: {error}"))),
        }
    }

    /// Whether the field is there, whatever it holds.
    pub(super) fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// A text without blanks around it. Numbers and truth values are taken as they are written; null is nothing.
    pub(super) fn text(&mut self, field: &str) -> Result<Option<String>, ContractError> {
        self.take(field, "a text", |value| text(&value))
    }

    /// A number, also one that stands in a text, with or without `%` behind it.
    pub(super) fn number(&mut self, field: &str) -> Result<Option<f64>, ContractError> {
        self.take(field, "a number", |value| match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => {
                let digits = text.trim().trim_end_matches('%').trim_end();
                digits.parse().ok().filter(|number: &f64| number.is_finite())
            }
            _ => None,
        })
    }

    pub(super) fn object(&mut self, field: &str) -> Result<Option<Map<String, Value>>, ContractError> {
        self.take(field, "an object", |value| match value {
            Value::Object(object) => Some(object),
            _ => None,
        })
    }

    /// Names of services, in order, each once: a list of texts or of objects with a `name`, or one text with commas.
    pub(super) fn services(&mut self, field: &str) -> Result<Vec<ServiceName>, ContractError> {
        let list = self.take(field, "a list of names", |value| match value {
            Value::Array(list) => Some(list),
            Value::String(names) => {
                let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
                Some(names.map(Value::from).collect())
            }
            _ => None,
        })?;
        let mut services = Vec::new();
        for (at, value) in list.unwrap_or_default().iter().enumerate() {
            let place = || format!("{field}[{at}]");
            let name = text(value.get("name").unwrap_or(value));
            let name = name.ok_or_else(|| ContractError::field(place(), "must be the name of a service"))?;
            let name = ServiceName::new(&name)
                .map_err(|error| ContractError::field(place(), format!("is {}: {error}", excerpt(&name))))?;
            services.push(name);
        }
        services.sort_unstable();
        services.dedup();
        Ok(services)
    }

    /// All that has not been taken.
    pub(super) fn rest(self) -> Map<String, Value> {
        self.0
    }

    fn take<T>(
        &mut self,
        field: &str,
        wanted: &str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, ContractError> {
        let Some(value) = self.0.remove(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let got = kind(&value);
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(ContractError::field(field, format!("must be {wanted}, and is {got}"))),
        }
    }
}

/// A value as text, where it has a plain one.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text \"{}\"", excerpt(text)),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
