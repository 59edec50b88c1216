//! What the calls that change something are answered with.

use hedgerow_proto::id::ServiceName;
use hedgerow_proto::record::WorkerType;
use serde::Serialize;

use crate::catalogue::ServiceConfig;
use crate::guest::not_routable;
use crate::request::{Registration, Via};
use crate::url::NotRoutable;
use crate::worker_id::WorkerId;

/// The answer to `/api/worker/register` and to `/api/edge/register`, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegisterAnswer {
    /// `registered`.
    pub status: &'static str,
    /// The id to heartbeat with.
    pub worker_id: String,
    /// The type in the worker's own word, or what its hardware made of `auto`.
    pub worker_type: String,
    /// The tier of its type: 1 to 4.
    pub tier: u8,
    /// `edge_coordinator` for edges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// The services that the worker is asked to run, the most wanted first. Not for `/api/edge/register`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigned_services: Option<Vec<ServiceName>>,
    /// The same with port and priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_configs: Option<Vec<ServiceConfig>>,
    /// How many coordinators are there, edges with them. For `/api/edge/register`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_coordinators: Option<usize>,
    /// Whether requests can be sent to its `tunnel_url`, as far as its form goes.
    pub routable: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What happened, for people.
    pub message: String,
}

impl RegisterAnswer {
    pub(super) fn new(
        worker_id: &WorkerId,
        registration: &Registration,
        assigned: Option<Vec<ServiceConfig>>,
        total_coordinators: usize,
        routable: Result<(), NotRoutable>,
    ) -> Self {
        let kind = registration.kind();
        let reason = routable.err().map(not_routable);
        let done = match assigned.as_ref().map(Vec::len) {
            None => format!("edge {worker_id} is registered"),
            Some(1) => format!("worker {worker_id} is registered, with 1 service assigned"),
            Some(count) => format!("worker {worker_id} is registered, with {count} services assigned"),
        };
        Self {
            status: "registered",
            worker_id: worker_id.to_string(),
            worker_type: registration.worker_type.clone(),
            tier: kind.tier(),
            role: (kind == WorkerType::Edge).then_some("edge_coordinator"),
            assigned_services: assigned.as_ref().map(|all| all.iter().map(|service| service.name.clone()).collect()),
            service_configs: assigned,
            total_coordinators: (registration.via == Via::Edge).then_some(total_coordinators),
            routable: reason.is_none(),
            reason,
            message: done,
        }
    }
}

/// The answer to a heartbeat, as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HeartbeatAnswer {
    /// `ok`.
    pub status: &'static str,
}

impl HeartbeatAnswer {
    /// It was noted.
    pub const OK: Self = Self { status: "ok" };
}

/// The answer to an unregistration, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnregisterAnswer {
    /// `unregistered`.
    pub status: &'static str,
    /// What happened, for people.
    pub message: String,
}

impl UnregisterAnswer {
    pub(super) fn new(worker_id: &WorkerId) -> Self {
        Self {
            status: "unregistered",
            message: format!("worker {worker_id} is unregistered; no requests go to it any more"),
        }
    }
}
