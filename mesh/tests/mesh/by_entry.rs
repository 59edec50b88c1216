//! Hosts that nobody can dial, by way of an entry: a stand-in that passes bytes on, as the real one does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hedgerow_mesh::host::paths::{Path, Security, at_entry};
use hedgerow_mesh::host::{HostHandle, HostStatus, Multiaddr, Outlook, Replication, Way, Why};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::record::Roles;
use hedgerow_tunnel::memory::{MemoryLink, pair};
use hedgerow_tunnel::{Link, TunnelError, quic};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::common::{Coordinator, FEDERATION, PATIENCE, record, until_equal};
use crate::homes::worker;

type Tunnels = Arc<Mutex<BTreeMap<NodeId, Arc<MemoryLink>>>>;

/// The entry, with a tunnel to each coordinator that has joined it.
pub(crate) struct Entry {
    port: u16,
    tunnels: Tunnels,
    running: Option<JoinSet<()>>,
}

impl Entry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut entry =
            Self { port: listener.local_addr().unwrap().port(), tunnels: Tunnels::default(), running: None };
        entry.serve(listener);
        entry
    }

    fn serve(&mut self, listener: TcpListener) {
        let tunnels = self.tunnels.clone();
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                clients.spawn(pass(client, tunnels.clone()));
            }
        });
        self.running = Some(running);
    }

    /// All that goes on in it ends, and nobody listens there.
    async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.shutdown().await;
        }
    }

    async fn restart(&mut self) {
        self.serve(TcpListener::bind(("127.0.0.1", self.port)).await.unwrap());
    }

    pub(crate) fn address(&self, node: NodeId) -> Multiaddr {
        at_entry(Security::Plain, "127.0.0.1", self.port, node)
    }

    /// The coordinator opens its tunnel.
    pub(crate) fn join(&self, node: NodeId, host: &HostHandle) {
        let (at_entry, at_node) = pair(NodeId([1; 32]), node);
        self.tunnels.lock().unwrap().insert(node, Arc::new(at_entry));
        let arrivals = host.arrivals().unwrap().clone();
        tokio::spawn(async move {
            while let Ok(stream) = at_node.accept().await {
                arrivals.arrive(stream);
            }
        });
    }
}

/// The entry's UDP port, which says from where whoever asks has come.
pub(crate) struct Observer {
    pub(crate) address: SocketAddr,
    told: tokio::sync::watch::Receiver<usize>,
    _running: JoinSet<()>,
}

impl Observer {
    pub(crate) fn start() -> Self {
        let identity =
            quic::EntryIdentity { key: SecretKey::from_seed([9; 32]), federation: FEDERATION, incarnation: 1 };
        let (socket, _) = quic::bind(([127, 0, 0, 1], 0).into(), quic::Sharing::Alone).unwrap();
        let address = socket.local_addr().unwrap();
        let endpoint = quic::listen(&identity, socket).unwrap();
        let acceptor = quic::Acceptor::new(&identity).unwrap();
        let (count, told) = tokio::sync::watch::channel(0);
        let mut running = JoinSet::new();
        running.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                assert!(matches!(acceptor.handshake(incoming).await.err(), Some(TunnelError::NoTunnelWanted)));
                count.send_modify(|count| *count += 1);
            }
        });
        Self { address, told, _running: running }
    }
}

async fn pass(mut client: TcpStream, tunnels: Tunnels) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let text = String::from_utf8(head.clone()).unwrap();
    let path = text.split(' ').nth(1).unwrap();
    let id: NodeId = path.strip_prefix("/mesh/peer/").unwrap().parse().unwrap();
    let tunnel = tunnels.lock().unwrap().get(&id).cloned();
    let Some(tunnel) = tunnel else { return };
    let Ok(mut stream) = tunnel.open().await else { return };
    if stream.write_all(&head).await.is_ok() {
        // However it ends, it has ended.
        let _ = copy_bidirectional(&mut client, &mut stream).await;
    }
}

/// A coordinator that listens on `listen`, if on anything, and can be reached at the entry.
pub(crate) async fn behind(entry: &Entry, seeds: &[&Coordinator], listen: &[&str], more: &[&str]) -> Coordinator {
    let one = Coordinator::start_at(seeds, Replication::Both, listen, |node| {
        let more = more.iter().map(|address| address.parse().unwrap());
        more.chain([entry.address(node)]).collect()
    });
    let one = one.await;
    entry.join(one.node(), &one.host);
    one
}

/// Waits until the host is as wanted.
async fn until(at: &HostHandle, wanted: impl Fn(&HostStatus) -> bool) {
    let mut status = at.status();
    let found = status.wait_for(|status| wanted(status));
    drop(tokio::time::timeout(PATIENCE, found).await.expect("never so").unwrap());
}

/// Waits until a peer is connected, by this way.
async fn until_way(at: &HostHandle, to: NodeId, wanted: impl Fn(&Way) -> bool) -> Way {
    let mut status = at.status();
    let found = status.wait_for(|status| status.ways.get(&to).is_some_and(&wanted));
    let status = tokio::time::timeout(PATIENCE, found).await.expect("never connected that way").unwrap();
    status.ways[&to]
}

#[tokio::test]
async fn coordinators_that_nobody_can_dial_agree_by_way_of_an_entry_and_again_after_its_restart() {
    let mut entry = Entry::start().await;
    let first = behind(&entry, &[], &[], &[]).await;
    let second = behind(&entry, &[&first], &[], &[]).await;
    let third = behind(&entry, &[&first], &[], &[]).await;
    let all = [&first, &second, &third];
    // Each its record and its lease.
    until_equal(&all, 6).await;
    for one in all {
        one.until_connected(2).await;
        assert!(one.host.status().borrow().ways.values().all(|way| way.path == Path::Entry));
        assert!(one.host.status().borrow().listening.is_empty(), "there is no port");
    }
    let way = until_way(&second.host, first.node(), |_| true).await;
    assert!(matches!(way.why, Why::NoOtherAddress | Why::Came), "{way:?}");

    entry.kill().await;
    for one in all {
        let mut status = one.host.status();
        let alone = status.wait_for(|status| status.peers.is_empty() && status.ways.is_empty());
        tokio::time::timeout(PATIENCE, alone).await.expect("never alone").unwrap();
    }
    first.say_guest("while-apart");
    entry.restart().await;
    for one in all {
        one.host.try_again().await;
    }
    for one in all {
        one.until("the guest", |registry| registry.guest("while-apart").is_some()).await;
    }
}

#[tokio::test]
async fn a_direct_way_is_preferred_and_the_entry_stands_in_for_one_that_leads_nowhere() {
    let entry = Entry::start().await;
    let first = behind(&entry, &[], &["/ip4/127.0.0.1/tcp/0"], &[]).await;
    // A port that was somebody's and is nobody's.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let nowhere = format!("/ip4/127.0.0.1/tcp/{nobody}");
    let second = behind(&entry, &[&first], &[], &[&nowhere]).await;
    let (host, id) = worker(7);
    host.connect(first.node(), first.addresses.clone()).await.unwrap();
    assert_eq!(until_way(&host, first.node(), |_| true).await, Way { path: Path::DirectTcp, why: Why::Dialled });
    host.connect(second.node(), second.addresses.clone()).await.unwrap();
    let way = until_way(&host, second.node(), |_| true).await;
    assert_eq!(way, Way { path: Path::Entry, why: Why::OthersUnanswered });
    assert_eq!(until_way(&second.host, id, |_| true).await.why, Why::Came);
    // The second one dials, since nobody else has told the first of it, and its direct address comes before the one at the entry.
    until_way(&first.host, second.node(), |way| way.path == Path::DirectTcp).await;
    until_way(&second.host, first.node(), |way| way.path == Path::DirectTcp).await;
}

/// A coordinator that names nothing but its address at the entry, though it listens over QUIC: as behind a NAT.
async fn hidden(entry: &Entry, seeds: &[&Coordinator]) -> Coordinator {
    let one = Coordinator::start_hidden(seeds, "/ip4/127.0.0.1/udp/0/quic-v1", |node| vec![entry.address(node)]);
    let one = one.await;
    entry.join(one.node(), &one.host);
    one
}

#[tokio::test]
async fn two_that_name_no_address_punch_a_hole_and_fall_back_to_the_entry_when_it_is_lost() {
    let (entry, observer) = (Entry::start().await, Observer::start());
    let first = hidden(&entry, &[]).await;
    let second = hidden(&entry, &[&first]).await;
    let way = until_way(&second.host, first.node(), |_| true).await;
    assert_eq!(way.path, Path::Entry);
    let outlook =
        |one: &Coordinator, other: &Coordinator| one.host.status().borrow().outlooks.get(&other.node()).copied();
    until(&second.host, |status| status.outlooks.get(&first.node()) == Some(&Outlook::NoDatagrams)).await;
    for one in [&first, &second] {
        one.host.observe_by(vec![observer.address]).await;
    }
    for (one, other) in [(&first, &second), (&second, &first)] {
        let way = until_way(&one.host, other.node(), |way| way.path != Path::Entry).await;
        assert_eq!(way, Way { path: Path::DirectQuic, why: Why::Punched });
        assert_eq!(outlook(one, other), None);
    }
    assert!(*observer.told.borrow() >= 2, "each has asked");
    // What is said now arrives, whichever connection is closed meanwhile, and when both are.
    first.say_guest("while-both-stand");
    second.until("the guest", |registry| registry.guest("while-both-stand").is_some()).await;
    // Nobody sees anything any more: no hole is punched again.
    for one in [&first, &second] {
        one.host.observe_by(vec![]).await;
    }
    first.host.disconnect(second.node()).await;
    first.say_guest("while-it-falls-back");
    second.until("the guest", |registry| registry.guest("while-it-falls-back").is_some()).await;
    let way = until_way(&second.host, first.node(), |way| way.path == Path::Entry).await;
    assert_ne!(way.why, Why::Punched);
}

#[tokio::test]
async fn who_came_by_way_of_the_entry_moves_to_an_address_that_is_named_later_and_the_entry_is_let_go_of() {
    let entry = Entry::start().await;
    let first = Coordinator::start_hidden(&[], "/ip4/127.0.0.1/tcp/0", |node| vec![entry.address(node)]).await;
    entry.join(first.node(), &first.host);
    let second = behind(&entry, &[&first], &[], &[]).await;
    until_way(&second.host, first.node(), |way| way.path == Path::Entry).await;
    let mut named = first.addresses.clone();
    named.extend(first.host.status().borrow().listening.clone());
    first.replica.announce(record(Roles::Coordinator, &named)).unwrap();
    until_way(&second.host, first.node(), |way| *way == Way { path: Path::DirectTcp, why: Why::Dialled }).await;
    until_way(&first.host, second.node(), |way| *way == Way { path: Path::DirectTcp, why: Why::Came }).await;
    assert!(second.host.status().borrow().outlooks.is_empty());
}
