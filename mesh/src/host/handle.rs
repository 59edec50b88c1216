//! What the rest of the node asks of its host.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::peer::{PeerRequest, PeerResponse};
use libp2p::{Multiaddr, StreamProtocol};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::behaviour::Names;
use super::requests::Asker;
use super::{Host, HostStatus, Registry, peer_id};

/// Neighbours that are asked at once: what none of these knows is known to nobody near.
const ASKED_AT_ONCE_MAX: usize = 16;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// This node holds no registry, so it asks no other.
    #[error("this node is not a coordinator")]
    NotACoordinator,
    /// There is no connection to that node.
    #[error("{0:?} is not connected")]
    NotConnected(NodeId),
    /// The request or its answer was lost, or took too long.
    #[error("the request came to nothing: {0}")]
    Failed(String),
    /// The host has stopped.
    #[error("the host has stopped")]
    Stopped,
}

/// What is asked of the host.
pub(super) enum Command {
    Ask(NodeId, PeerRequest, oneshot::Sender<Result<PeerResponse, AskError>>),
    Synchronise(NodeId, oneshot::Sender<()>),
    Provide(Vec<ServiceName>),
    Providers(ServiceName, oneshot::Sender<Vec<NodeId>>),
    Connect(NodeId, Vec<Multiaddr>, oneshot::Sender<Result<(), String>>),
    Disconnect(NodeId),
}

/// A handle to a host that runs. The host stops when the last one is dropped.
#[derive(Clone)]
pub struct HostHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<HostStatus>,
    pub(super) streams: libp2p_stream::Control,
    names: Names,
}

impl HostHandle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        status: watch::Receiver<HostStatus>,
        streams: libp2p_stream::Control,
        names: Names,
    ) -> Self {
        Self { commands, status, streams, names }
    }

    /// What it is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<HostStatus> {
        self.status.clone()
    }

    pub(super) fn home_protocol(&self) -> StreamProtocol {
        self.names.home()
    }

    pub(super) fn tunnel_protocol(&self) -> StreamProtocol {
        self.names.tunnel()
    }

    pub(super) fn relay_protocol(&self) -> StreamProtocol {
        self.names.relay()
    }

    /// Somebody who may ask for connections, and does not keep the host running.
    pub(super) fn caller(&self) -> Caller {
        Caller(self.commands.downgrade())
    }

    async fn command<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, AskError> {
        command_to(&self.commands, command).await
    }

    /// Asks a connected coordinator.
    pub async fn ask(&self, node: NodeId, request: PeerRequest) -> Result<PeerResponse, AskError> {
        self.command(|answer| Command::Ask(node, request, answer)).await?
    }

    /// Asks the neighbours at once; the answers as they come, for at most `within`.
    async fn ask_all(&self, request: PeerRequest, within: Duration, mut enough: impl FnMut(PeerResponse) -> bool) {
        let neighbours: Vec<NodeId> = self.status.borrow().coordinators.iter().copied().collect();
        let mut asked: FuturesUnordered<_> =
            neighbours.iter().take(ASKED_AT_ONCE_MAX).map(|node| self.ask(*node, request.clone())).collect();
        let all = async {
            while let Some(answer) = asked.next().await {
                if answer.is_ok_and(&mut enough) {
                    return;
                }
            }
        };
        // What has come until then counts.
        let _ = timeout(within, all).await;
    }

    /// Puts records of this node's own into the registries of its neighbours, at once; returns how many of those hold them,
    /// when `wanted` do, all have answered, or `within` is over.
    pub async fn replicate(&self, records: Vec<Bytes>, wanted: usize, within: Duration) -> usize {
        let sent = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let records = records.into_iter().map(|record| record.to_vec()).collect();
        let mut holders = 0;
        self.ask_all(PeerRequest::Push(records), within, |answer| {
            holders += usize::from(answer == PeerResponse::Taken(sent));
            holders >= wanted
        })
        .await;
        holders
    }

    /// Asks the neighbours what they know of an agent: signed records with their ages, of the first that knows anything.
    pub async fn find_guest(&self, worker_id: &str, within: Duration) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        self.ask_all(PeerRequest::Guest(worker_id.to_owned()), within, |answer| match answer {
            PeerResponse::Guest(records) if !records.is_empty() => {
                found = records;
                true
            }
            _ => false,
        })
        .await;
        found
    }

    /// Synchronises with a neighbour, now.
    pub async fn synchronise(&self, node: NodeId, within: Duration) {
        // The end of the session, however it ends, drops the sender.
        let _ = timeout(within, self.command(|done| Command::Synchronise(node, done))).await;
    }

    /// Says by Kademlia that this node knows providers of these services, and of no others.
    pub async fn provide(&self, services: Vec<ServiceName>) {
        // A host that has stopped provides nothing.
        let _ = self.commands.send(Command::Provide(services)).await;
    }

    /// Asks Kademlia which coordinators may know providers of a service: hints, to synchronise with.
    pub async fn providers(&self, service: ServiceName, within: Duration) -> Vec<NodeId> {
        let asked = timeout(within, self.command(|answer| Command::Providers(service, answer))).await;
        asked.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Connects to a node at these addresses, if it is not connected; ready when it has said that it is of this federation.
    pub async fn connect(&self, node: NodeId, addresses: Vec<Multiaddr>) -> Result<(), AskError> {
        connect(&self.commands, node, addresses).await
    }

    /// Ends the connection to a node.
    pub async fn disconnect(&self, node: NodeId) {
        let _ = self.commands.send(Command::Disconnect(node)).await;
    }
}

/// What is left of a [`HostHandle`] for those who must not keep the host running.
pub(super) struct Caller(mpsc::WeakSender<Command>);

impl Caller {
    /// As [`HostHandle::connect`].
    pub(super) async fn connect(&self, node: NodeId, addresses: Vec<Multiaddr>) -> Result<(), AskError> {
        let commands = self.0.upgrade().ok_or(AskError::Stopped)?;
        connect(&commands, node, addresses).await
    }
}

async fn connect(commands: &mpsc::Sender<Command>, node: NodeId, addresses: Vec<Multiaddr>) -> Result<(), AskError> {
    let connected = command_to(commands, |answer| Command::Connect(node, addresses, answer)).await?;
    connected.map_err(AskError::Failed)
}

async fn command_to<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, AskError> {
    let (answer, answered) = oneshot::channel();
    commands.send(command(answer)).await.map_err(|_| AskError::Stopped)?;
    answered.await.map_err(|_| AskError::Stopped)
}

impl Host {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Ask(node, request, answer) => match peer_id(node).filter(|_| self.is_neighbour(&node)) {
                Some(peer) => self.ask(peer, request, Asker::Other(answer)),
                // Whoever asked may have gone.
                None => drop(answer.send(Err(AskError::NotConnected(node)))),
            },
            Command::Synchronise(node, done) => self.synchronise(node, done),
            Command::Provide(services) => self.provide(&services),
            Command::Providers(service, answer) => self.find_providers(&service, answer),
            Command::Connect(node, addresses, answer) => match peer_id(node) {
                Some(peer) if self.status.borrow().peers.contains(&peer) => drop(answer.send(Ok(()))),
                Some(peer) => {
                    let waiting = self.connecting.entry(peer).or_default();
                    // Those who gave it up while the dial goes on.
                    waiting.retain(|waits| !waits.is_closed());
                    waiting.push(answer);
                    self.dial(peer, addresses);
                }
                None => drop(answer.send(Err("its id is no key".into()))),
            },
            Command::Disconnect(node) => {
                if let Some(peer) = peer_id(node) {
                    self.disconnect(peer);
                }
            }
        }
    }

    /// Whether a coordinator is connected.
    pub(super) fn is_neighbour(&self, node: &NodeId) -> bool {
        self.registry.as_ref().is_some_and(|registry| registry.peering.coordinators().contains(node))
    }

    /// Begins a synchronisation, or waits for the one that is under way; `done` is dropped at its end, or now if there is none.
    fn synchronise(&mut self, node: NodeId, done: oneshot::Sender<()>) {
        if let Some(Registry { synchronising, .. }) = &mut self.registry {
            synchronising.entry(node).or_default().push(done);
        }
        let begun = self.tell(|peering, replica, now| peering.synchronise(now, replica, node));
        if let Some(Registry { synchronising, .. }) = self.registry.as_mut().filter(|_| begun != Some(true)) {
            synchronising.remove(&node);
        }
    }
}
