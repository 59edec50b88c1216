//! Who offers which service, and how requests reach it from here: worked out when something has changed, as in the binary, and not
//! anew for each request.

use std::collections::BTreeMap;
use std::rc::Rc;

use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::offers;
use hedgerow_proto::registry::Registry;

use super::{Members, connection_of};
use crate::net::ConnectionId;

/// The way to a node that may take a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) node: NodeId,
    pub(super) connection: ConnectionId,
    pub(super) via: Option<NodeId>,
    pub(super) capacity: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The registry's generation that it was worked out from; none if the members have changed since.
    as_of: Option<u64>,
    of_service: Vec<Rc<[Way]>>,
}

impl Ways {
    /// A tunnel has come or gone, or a node says something else down its own.
    pub(super) fn members_changed(&mut self) {
        self.as_of = None;
    }

    /// The ways to those who offer this one of all services, in order of id: of those with a tunnel here first.
    pub(super) fn to(
        &mut self,
        members: &Members,
        registry: &Registry,
        services: &[ServiceName],
        service: u32,
    ) -> Rc<[Way]> {
        if self.as_of.replace(registry.generation()) != Some(registry.generation()) {
            self.of_service = work_out(members, registry, services);
        }
        self.of_service.get(service as usize).cloned().unwrap_or_default()
    }
}

fn work_out(members: &Members, registry: &Registry, services: &[ServiceName]) -> Vec<Rc<[Way]>> {
    let numbers: BTreeMap<&ServiceName, usize> = services.iter().zip(0..).collect();
    let mut ways = vec![Vec::new(); services.len()];
    for seen in offers::nodes(members, registry) {
        let way = seen.way.and_then(|way| match way {
            offers::Way::Tunnel(member) => Some((connection_of(member)?, None)),
            offers::Way::ViaCoordinator { tunnel, .. } => Some((*tunnel, Some(seen.id))),
        });
        let Some((connection, via)) = way else { continue };
        for offer in seen.offers() {
            if let Some(number) = numbers.get(&offer.name) {
                ways[*number].push(Way { node: seen.id, connection, via, capacity: offer.capacity });
            }
        }
    }
    ways.into_iter().map(Rc::from).collect()
}
