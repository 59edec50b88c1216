//! What the rest of the node asks of its host.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::id::{NodeId, ServiceName};
use hedgerow_proto::peer::{PeerRequest, PeerResponse};
use hedgerow_proto::peering::{Conclusion, Question};
use libp2p::{Multiaddr, StreamProtocol};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::behaviour::Names;
use super::paths::Arrivals;
use super::requests::Asker;
use super::{Host, HostStatus, Registry, peer_id};

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
    Question(Question, Duration, oneshot::Sender<Conclusion>),
    Synchronise(NodeId, oneshot::Sender<()>),
    Provide(Vec<ServiceName>),
    Providers(ServiceName, oneshot::Sender<Vec<NodeId>>),
    Connect(NodeId, Vec<Multiaddr>, oneshot::Sender<Result<(), String>>),
    Disconnect(NodeId),
    Announce(Vec<Multiaddr>),
    Observers(Vec<SocketAddr>),
    TryAgain,
}

/// A handle to a host that runs. The host stops when the last one is dropped.
#[derive(Clone)]
pub struct HostHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<HostStatus>,
    pub(super) streams: libp2p_stream::Control,
    names: Names,
    arrivals: Option<Arrivals>,
    /// For jitter.
    pub(super) seed: u64,
}

impl HostHandle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        status: watch::Receiver<HostStatus>,
        streams: libp2p_stream::Control,
        names: Names,
        seed: u64,
    ) -> Self {
        Self { commands, status, streams, names, arrivals: None, seed }
    }

    pub(super) fn with_arrivals(self, arrivals: Arrivals) -> Self {
        Self { arrivals: Some(arrivals), ..self }
    }

    /// Where streams go that entries open for mesh peers, if this host takes any.
    pub fn arrivals(&self) -> Option<&Arrivals> {
        self.arrivals.as_ref()
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

    /// Asks the neighbours all at once. `None`: the host has stopped, or is a worker's.
    async fn ask_neighbours(&self, question: Question, within: Duration) -> Option<Conclusion> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(Command::Question(question, within, answer));
        timeout(within, sent).await.ok()?.ok()?;
        answered.await.ok()
    }

    /// Puts records of this node's own into the registries of its neighbours, at once; returns how many of those hold them,
    /// when `wanted` do, all have answered, or `within` is over.
    pub async fn replicate(&self, records: Vec<Bytes>, wanted: usize, within: Duration) -> usize {
        match self.ask_neighbours(Question::Hold { records, wanted }, within).await {
            Some(Conclusion::Held(holders)) => holders,
            _ => 0,
        }
    }

    /// Asks the neighbours what they know of an agent: signed records with their ages, of the first that knows anything.
    pub async fn find_guest(&self, worker_id: &str, within: Duration) -> Vec<(u64, Vec<u8>)> {
        match self.ask_neighbours(Question::Guest(worker_id.to_owned()), within).await {
            Some(Conclusion::Guest(records)) => records,
            _ => Vec::new(),
        }
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

    /// Says by libp2p that this host can be dialled there too, and nowhere else beside where it listens.
    pub async fn announce(&self, addresses: Vec<Multiaddr>) {
        // A host that has stopped cannot be dialled.
        let _ = self.commands.send(Command::Announce(addresses)).await;
    }

    /// These UDP ports of entries, and no others, say from where a datagram of this host's comes.
    pub async fn observe_by(&self, entries: Vec<SocketAddr>) {
        // A host that has stopped punches no holes.
        let _ = self.commands.send(Command::Observers(entries)).await;
    }

    /// What kept this host from reaching others may be over: those that failed are tried again at once.
    pub async fn try_again(&self) {
        let _ = self.commands.send(Command::TryAgain).await;
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
            Command::Question(question, within, answer) => self.question(question, within, answer),
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
            Command::Announce(addresses) => self.announce(addresses),
            Command::Observers(entries) => self.observers(entries),
            Command::TryAgain => drop(self.tell(|peering, _, _| peering.try_again())),
        }
    }

    fn announce(&mut self, addresses: Vec<Multiaddr>) {
        let gone: Vec<Multiaddr> =
            self.swarm.external_addresses().filter(|address| !addresses.contains(address)).cloned().collect();
        for address in gone {
            self.swarm.remove_external_address(&address);
        }
        for address in addresses {
            self.swarm.add_external_address(address);
        }
    }

    /// Whether a coordinator is connected.
    pub(super) fn is_neighbour(&self, node: &NodeId) -> bool {
        self.registry.as_ref().is_some_and(|registry| registry.peering.coordinators().contains(node))
    }

    fn question(&mut self, question: Question, within: Duration, answer: oneshot::Sender<Conclusion>) {
        // Before what follows is done: it may be over at once.
        if let Some(Registry { replica, peering, concluding, .. }) = &mut self.registry {
            let id = peering.ask_neighbours(replica.now(), question, within);
            concluding.insert(id, answer);
        }
        self.follow_all();
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
