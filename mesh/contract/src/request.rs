//! What agents send, read leniently: they exit when a registration is refused, and there are many kinds of them. What is
//! not known is kept, what is written in another form is understood, and what cannot be is refused by name.

use hedgerow_proto::id::ServiceName;
use hedgerow_proto::record::{GuestStatus, WorkerType};

use crate::assign::type_of;
use crate::error::{ContractError, excerpt};
use crate::worker_id::WorkerId;

mod capabilities;
mod fields;

pub use capabilities::Capabilities;
use fields::Fields;

/// The longest body that is read, in bytes: a registration has a few hundred, and some say much about their hardware.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// By which call a registration came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// `/api/worker/register`.
    Worker,
    /// `/api/edge/register`.
    Edge,
}

/// A registration, of a worker or of an edge.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// By which call it came.
    pub via: Via,
    /// What the agent calls itself. One that says nothing has an id made for it.
    pub worker_id: Option<WorkerId>,
    /// Its type in its own word, in lower case, at most [`Registration::TYPE_BYTES_MAX`] bytes.
    pub worker_type: String,
    /// The URL that it gives, as it came: it may be empty, or nonsense.
    pub tunnel_url: String,
    /// Where it says it is; empty if it does not.
    pub location: String,
    /// The services that it names itself, in order of name, each once.
    pub services: Vec<ServiceName>,
    /// What it says of its hardware, and whatever else it said.
    pub capabilities: Capabilities,
}

impl Registration {
    /// The longest type, in bytes: a word.
    pub const TYPE_BYTES_MAX: usize = 32;

    /// Reads the body of `/api/worker/register`. Only `capabilities` has to be there; where the type is missing or `auto`,
    /// they say what the worker is.
    pub fn parse(body: &[u8]) -> Result<Self, ContractError> {
        let mut fields = Fields::parse(body)?;
        let worker_id = match fields.text("worker_id")? {
            Some(id) if !id.is_empty() => Some(worker_id(&id)?),
            _ => None,
        };
        let capabilities = fields.object("capabilities")?.ok_or(ContractError::Missing { field: "capabilities" })?;
        let mut capabilities = Capabilities::new(capabilities);
        let own_word = fields.text("worker_type")?;
        let worker_type = worker_type(own_word.or_else(|| capabilities.text("worker_type")), &capabilities)?;
        let tunnel_url = fields.text("tunnel_url")?.unwrap_or_default();
        let location = fields.text("location")?.or_else(|| capabilities.text("location")).unwrap_or_default();
        let services = fields.services("services")?;
        capabilities.add(fields.rest());
        Ok(Self { via: Via::Worker, worker_id, worker_type, tunnel_url, location, services, capabilities })
    }

    /// Reads the body of `/api/edge/register`. The id and a URL, as `tunnel_url` or as `url`, have to be there; that the
    /// URL is empty or nonsense only means that it is no route.
    pub fn parse_edge(body: &[u8]) -> Result<Self, ContractError> {
        let mut fields = Fields::parse(body)?;
        let worker_id = required_id(&mut fields)?;
        if !fields.has("tunnel_url") && !fields.has("url") {
            return Err(ContractError::Missing { field: "tunnel_url" });
        }
        let (tunnel_url, url) = (fields.text("tunnel_url")?, fields.text("url")?);
        let tunnel_url = tunnel_url.filter(|url| !url.is_empty()).or(url).unwrap_or_default();
        // Whatever type it names: whoever registers here is an edge.
        fields.text("worker_type")?;
        let mut capabilities = Capabilities::new(fields.object("capabilities")?.unwrap_or_default());
        let location = fields.text("location")?.or_else(|| capabilities.text("location")).unwrap_or_default();
        let services = fields.services("services")?;
        capabilities.add(fields.rest());
        let worker_type = WorkerType::Edge.as_str().to_owned();
        let (via, worker_id) = (Via::Edge, Some(worker_id));
        Ok(Self { via, worker_id, worker_type, tunnel_url, location, services, capabilities })
    }

    /// What its type counts as.
    pub fn kind(&self) -> WorkerType {
        type_of(&self.worker_type)
    }
}

/// A heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Of whom.
    pub worker_id: WorkerId,
    /// How it does. A heartbeat without a word on it is a sign of health; so is a word that is not known, since whoever
    /// sends it is alive.
    pub status: GuestStatus,
    /// How busy it is, in hundredths, if it says so.
    pub load_percent: Option<u8>,
}

impl Heartbeat {
    /// Reads the body of `/api/worker/heartbeat` or of `/api/edge/heartbeat`.
    ///
    /// `current_load` is a fraction up to 1 and a percentage above it: both are in use, and nobody who is a hundredth busy
    /// minds being taken for busy until the next heartbeat.
    pub fn parse(body: &[u8]) -> Result<Self, ContractError> {
        let mut fields = Fields::parse(body)?;
        let worker_id = required_id(&mut fields)?;
        let status = match fields.text("status")?.unwrap_or_default().to_ascii_lowercase().as_str() {
            "degraded" | "unhealthy" | "failed" | "error" => GuestStatus::Degraded,
            _ => GuestStatus::Healthy,
        };
        let load_percent = fields.number("current_load")?.map(|load| {
            let percent = if load <= 1.0 { load * 100.0 } else { load };
            percent.clamp(0.0, 100.0).round() as u8
        });
        Ok(Self { worker_id, status, load_percent })
    }
}

fn required_id(fields: &mut Fields) -> Result<WorkerId, ContractError> {
    let id = fields.text("worker_id")?.filter(|id| !id.is_empty());
    worker_id(&id.ok_or(ContractError::Missing { field: "worker_id" })?)
}

fn worker_id(text: &str) -> Result<WorkerId, ContractError> {
    text.parse().map_err(|error| ContractError::field("worker_id", format!("is {}: {error}", excerpt(text))))
}

/// The type in its own word; where it says none, what its hardware says.
fn worker_type(own_word: Option<String>, capabilities: &Capabilities) -> Result<String, ContractError> {
    let word = own_word.unwrap_or_default().to_ascii_lowercase();
    if word.is_empty() || word == "auto" {
        let has = |key| capabilities.is_true(key);
        let kind = match () {
            () if has("has_gpu") => WorkerType::Gpu,
            () if has("has_storage") => WorkerType::Storage,
            () if has("has_edge") => WorkerType::Edge,
            () => WorkerType::Cpu,
        };
        return Ok(kind.as_str().to_owned());
    }
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if plain && word.len() <= Registration::TYPE_BYTES_MAX {
        return Ok(word);
    }
    Err(ContractError::field("worker_type", format!("is {}: write auto, gpu, cpu, storage or edge", excerpt(&word))))
}

#[cfg(test)]
mod tests;
