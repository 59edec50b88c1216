//! A worker's side of its home: it keeps one control connection to a coordinator, and goes to another by itself when that
//! fails. Requests that come down its own tunnels do not notice. Which one, and when, is [`hedgerow_proto::home::seeker`]'s
//! to say; here are the connections.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use hedgerow_mesh::host::link::{HomeDialer, PeerLink};
use hedgerow_mesh::host::{HostHandle, Multiaddr};
use hedgerow_mesh::replica::Replica;
use hedgerow_proto::home;
use hedgerow_proto::home::seeker::{CONNECT_WITHIN, Event, Output, PONG_TIMEOUT};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::record::Home;
use hedgerow_tunnel::{DialConfig, TunnelError, serve_over};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;
use tracing::{Instrument, debug, info};

use super::hints::Hints;

/// What a worker needs to find itself a home.
pub struct Seeker<'a> {
    /// The worker's own records, and its clock.
    pub replica: &'a Replica,
    /// Its federation.
    pub federation: FederationId,
    /// What its tunnels share.
    pub config: DialConfig,
    /// Whom it has heard of.
    pub hints: &'a Arc<Hints>,
    /// Says that the worker's home is this, so that its record does.
    pub settle: &'a (dyn Fn(Home) + Send + Sync),
    /// The move that was counted last.
    pub moves: &'a mut u64,
    /// Where the home stands that has taken it in.
    pub attached: &'a watch::Sender<Option<NodeId>>,
    /// For jitter.
    pub seed: u64,
}

/// What came of what was being done.
enum Done {
    Reached(NodeId, Arc<PeerLink>),
    NotReached(NodeId, String),
    Ended(NodeId, Result<(), TunnelError>),
}

/// What is being done: one thing at a time.
type Doing<'a> = Pin<Box<dyn Future<Output = Done> + Send + 'a>>;

impl Seeker<'_> {
    /// Keeps a home for as long as the host runs.
    pub async fn keep(mut self, host: &HostHandle) {
        let Ok(dialer) = HomeDialer::new(host) else { return };
        self.config.pong_timeout = PONG_TIMEOUT;
        self.config.coordinators = self.listen();
        let Self { replica, federation, config, settle, moves, attached, seed, .. } = self;
        let mut hints = self.hints.watch();
        let mut seeker = home::Seeker::new(replica.node(), *moves, seed);
        let answered = Notify::new();
        let mut doing: Option<Doing<'_>> = None;
        // Reached, and about to be joined.
        let mut link: Option<Arc<PeerLink>> = None;
        loop {
            while let Some(output) = seeker.poll_output() {
                match output {
                    Output::Connect { home, addresses } => {
                        doing = Some(Box::pin(reach(host, &dialer, home, addresses)))
                    }
                    Output::GiveUp(home) => {
                        doing = None;
                        debug!(home = %home.short(), "a coordinator is not reached within {CONNECT_WITHIN:?}");
                    }
                    Output::Join(home) => {
                        *moves = home.home_seq;
                        settle(home);
                        let stay = link.take().map(|link| stay(&config, federation, home.coordinator, link, &answered));
                        doing = stay.map(|stay| Box::pin(stay) as Doing<'_>);
                    }
                    Output::Settled(home) => {
                        attached.send_replace(Some(home));
                        info!(home = %home.short(), "at home with a coordinator");
                    }
                    Output::Leave(home) => {
                        attached.send_if_modified(|attached| attached.take().is_some());
                        host.disconnect(home).await;
                    }
                }
            }
            let due = seeker.poll_timeout().map(|(at, _)| at.since(replica.now()));
            let waits = async {
                match due {
                    Some(pause) => sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            let works = async {
                match &mut doing {
                    Some(doing) => doing.await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                done = works => {
                    doing = None;
                    // Its last answer comes before its end, whichever was looked at first.
                    if let (Some(home), Some(())) = (done.stayed_at(), answered.notified().now_or_never()) {
                        seeker.handle(replica.now(), Event::Pong(home), &hints.borrow());
                    }
                    done.tell(seeker.settled());
                    match done {
                        Done::Reached(home, reached) => {
                            link = Some(reached);
                            Event::Reached(home)
                        }
                        Done::NotReached(home, _) => Event::NotReached(home),
                        Done::Ended(home, _) => Event::Ended(home),
                    }
                }
                () = answered.notified() => match seeker.staying() {
                    Some(home) => Event::Pong(home),
                    None => continue,
                },
                // The sender is this node's own: it does not go before this.
                _ = hints.changed() => Event::Heard,
                () = waits => {
                    seeker.handle_timeout(replica.now(), &hints.borrow());
                    continue;
                }
            };
            seeker.handle(replica.now(), event, &hints.borrow());
        }
    }

    /// What homes tell of other coordinators.
    fn listen(&self) -> mpsc::Sender<Vec<Vec<u8>>> {
        let (sender, mut told) = mpsc::channel::<Vec<Vec<u8>>>(4);
        let hints = self.hints.clone();
        let hearing = async move {
            while let Some(records) = told.recv().await {
                hints.hear(&records);
            }
        };
        tokio::spawn(hearing.in_current_span());
        sender
    }
}

impl Done {
    /// The coordinator with which it stayed until now, or tried to.
    fn stayed_at(&self) -> Option<NodeId> {
        match self {
            Self::Ended(home, _) => Some(*home),
            Self::Reached(..) | Self::NotReached(..) => None,
        }
    }

    /// For the log.
    fn tell(&self, settled: Option<NodeId>) {
        match self {
            Self::Reached(..) => {}
            Self::NotReached(home, error) => debug!(home = %home.short(), %error, "a coordinator is not reached"),
            Self::Ended(_, Ok(())) => debug!("left"),
            Self::Ended(home, Err(TunnelError::Rejected(reject))) => {
                debug!(home = %home.short(), message = reject.message, "the coordinator does not take this worker in");
            }
            Self::Ended(home, Err(error)) if settled.is_some() => {
                info!(home = %home.short(), %error, "the home is lost; looking for another");
            }
            Self::Ended(home, Err(error)) => debug!(home = %home.short(), %error, "no home there"),
        }
    }
}

async fn reach(host: &HostHandle, dialer: &HomeDialer, home: NodeId, addresses: Vec<String>) -> Done {
    let addresses = addresses.iter().filter_map(|address| address.parse().ok());
    match connect(host, dialer, home, addresses).await {
        Ok(link) => Done::Reached(home, Arc::new(link)),
        Err(error) => Done::NotReached(home, error),
    }
}

async fn connect(
    host: &HostHandle,
    dialer: &HomeDialer,
    home: NodeId,
    addresses: impl Iterator<Item = Multiaddr>,
) -> Result<PeerLink, String> {
    host.connect(home, addresses.collect()).await.map_err(|error| error.to_string())?;
    dialer.dial(home).await.map_err(|error| error.to_string())
}

/// Lives there until the connection ends.
async fn stay(
    config: &DialConfig,
    federation: FederationId,
    home: NodeId,
    link: Arc<PeerLink>,
    answered: &Notify,
) -> Done {
    Done::Ended(home, serve_over(config, federation, link, |_| answered.notify_one()).await)
}
