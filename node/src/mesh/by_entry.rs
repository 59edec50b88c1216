//! The addresses that this node has at entries. Each entry to which it has a tunnel is one; it is told to others in its record, and
//! taken back when the tunnel has been gone for a while. And which of the entries can say from where this node's datagrams come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_mesh::host::Multiaddr;
use hedgerow_mesh::host::paths::{Security, at_entry};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::limits::Limits;
use hedgerow_proto::scope::Scope;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::entries::UpEntry;
use crate::entry_url::{EntryUrl, Scheme};
use crate::mesh::Mesh;

/// How long an address is told after its tunnel has gone. An entry that restarts is back by then, and nobody need be told twice.
const TAKE_BACK_AFTER: Duration = Duration::from_secs(10);
/// Addresses at entries that a node tells: one is enough to be reached, another one stands in for it; a record has not room for many.
const TOLD_MAX: usize = 2;

/// What is told in which federation.
#[derive(Debug, Default)]
struct Told {
    /// By URL: several entries may stand behind one.
    urls: BTreeMap<(FederationId, String), Known>,
}

#[derive(Debug)]
struct Known {
    url: EntryUrl,
    scope: Scope,
    /// When it was up last; none while it is.
    lost: Option<Instant>,
}

impl Told {
    /// These are up now.
    fn look(&mut self, now: Instant, up: &[UpEntry]) {
        for known in self.urls.values_mut() {
            known.lost.get_or_insert(now);
        }
        for UpEntry { url, federation, addresses, .. } in up {
            let scope = Scope::farthest(addresses.iter().copied());
            let known = Known { url: url.clone(), scope, lost: None };
            self.urls.insert((*federation, url.to_string()), known);
        }
        self.urls.retain(|_, known| known.lost.is_none_or(|lost| now < lost + TAKE_BACK_AFTER));
    }

    /// When the next one is taken back.
    fn next(&self) -> Option<Instant> {
        self.urls.values().filter_map(|known| known.lost).min().map(|lost| lost + TAKE_BACK_AFTER)
    }

    /// The node's addresses in a federation, those at entries that reach farthest first: where the farthest entry is one of the world,
    /// an entry of this machine is nothing to others.
    fn addresses(&self, federation: FederationId, node: NodeId) -> Vec<Multiaddr> {
        let mut known: Vec<&Known> =
            self.urls.iter().filter(|((of, _), _)| *of == federation).map(|(_, known)| known).collect();
        let farthest = known.iter().map(|known| known.scope).max();
        known.retain(|known| Some(known.scope) == farthest);
        known.truncate(TOLD_MAX);
        let address = |known: &Known| {
            let security = match known.url.scheme {
                Scheme::Http => Security::Plain,
                Scheme::Https => Security::Tls,
            };
            at_entry(security, &known.url.host, known.url.port, node)
        };
        // One whose name is too long for a record would keep all of the record from being said.
        let fits = |address: &Multiaddr| address.to_string().len() <= Limits::PRODUCTION.multiaddr_bytes_max;
        known.into_iter().map(address).filter(fits).collect()
    }
}

/// Tells the node's parts on the mesh where they are reached by way of entries, and when an entry has come back: for as long as there
/// are such parts (`meshes`) and somebody says when something has changed. `up` are the entries whose tunnel is up.
pub async fn follow(
    mut changes: watch::Receiver<u64>,
    up: impl Fn() -> Vec<UpEntry>,
    meshes: impl Fn() -> Option<Vec<Arc<Mesh>>>,
) {
    let (mut told, mut known_up) = (Told::default(), BTreeSet::new());
    loop {
        changes.mark_unchanged();
        let up = up();
        told.look(Instant::now(), &up);
        let now_up: BTreeSet<_> = up.iter().map(|up| (up.federation, up.entry, up.since)).collect();
        let Some(meshes) = meshes() else { return };
        for mesh in meshes {
            mesh.has_addresses_at_entries(told.addresses(mesh.federation, mesh.replica.node()));
            let here = up.iter().filter(|up| up.federation == mesh.federation);
            mesh.has_observers(here.filter_map(|up| up.observer).collect());
            if now_up.difference(&known_up).any(|(federation, ..)| *federation == mesh.federation) {
                mesh.entry_came_up();
            }
        }
        known_up = now_up;
        let taken_back = async {
            match told.next() {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = taken_back => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEDERATION: FederationId = FederationId([1; 32]);
    const ME: NodeId = NodeId([2; 32]);

    fn up(url: &str, address: &str) -> UpEntry {
        UpEntry {
            entry: NodeId([3; 32]),
            url: url.parse().unwrap(),
            federation: FEDERATION,
            addresses: vec![address.parse().unwrap()],
            observer: None,
            since: Instant::now(),
        }
    }

    fn told(told: &Told) -> Vec<String> {
        let path = format!("%2Fmesh%2Fpeer%2F{ME}");
        told.addresses(FEDERATION, ME)
            .into_iter()
            .map(|address| address.to_string().strip_suffix(&path).unwrap().to_owned())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_told_while_its_tunnel_is_up_and_a_little_longer() {
        let (mut all, start) = (Told::default(), Instant::now());
        let entry = [up("https://example.org", "192.0.2.1")];
        all.look(start, &entry);
        assert_eq!(told(&all), ["/dns/example.org/tcp/443/x-parity-wss/"]);
        assert_eq!(all.next(), None);
        all.look(start, &[]);
        assert_eq!(told(&all).len(), 1, "it may only restart");
        assert_eq!(all.next(), Some(start + TAKE_BACK_AFTER));
        let back = start + TAKE_BACK_AFTER / 2;
        all.look(back, &entry);
        assert_eq!(all.next(), None);
        all.look(back, &[]);
        all.look(back + TAKE_BACK_AFTER, &[]);
        assert!(told(&all).is_empty());
        assert!(all.addresses(FederationId([9; 32]), ME).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_entries_that_are_something_to_others_count() {
        let mut all = Told::default();
        all.look(Instant::now(), &[up("http://127.0.0.1:8080", "127.0.0.1")]);
        assert_eq!(told(&all), ["/ip4/127.0.0.1/tcp/8080/x-parity-ws/"]);
        let (one, other, more) =
            (up("https://a.org", "192.0.2.1"), up("https://b.org:8443", "192.0.2.2"), up("https://c.org", "192.0.2.3"));
        all.look(Instant::now(), &[up("http://127.0.0.1:8080", "127.0.0.1"), one, other, more]);
        let at = told(&all);
        assert_eq!(at, ["/dns/a.org/tcp/443/x-parity-wss/", "/dns/b.org/tcp/8443/x-parity-wss/"]);
    }
}
