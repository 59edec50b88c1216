//! The ways to an entry, and which of them a tunnel takes: QUIC if it comes up soon, else TLS over TCP, which gets through where
//! no UDP does. As with two families of addresses (RFC 8305) the first that is up wins, with a head start for the better one.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedgerow_proto::frame::Hello;
use tokio::time::sleep;
use tracing::debug;

use crate::accept::TunnelError;
use crate::dial::{DialConfig, Directory, Joined, Target, greet, join};
use crate::link::{Link, Transport};
use crate::tuning;

/// How far apart attempts at several addresses of one entry begin (RFC 8305 §5 recommends 250 ms).
const ADDRESS_STAGGER: Duration = Duration::from_millis(250);

/// One way to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// QUIC, to this UDP address.
    Quic(SocketAddr),
    /// TLS over TCP.
    Tcp {
        /// The TCP address.
        address: SocketAddr,
        /// The entry's name or address in its URL, for proxies and firewalls on the way that look at it.
        host: String,
    },
}

impl Way {
    /// Where it leads.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Quic(address) | Self::Tcp { address, .. } => *address,
        }
    }

    /// What carries a connection on it.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Quic(_) => Transport::Quic,
            Self::Tcp { .. } => Transport::Tcp,
        }
    }
}

/// A connection, and how it came about.
pub(crate) struct Dialled {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) way: Way,
    /// Where it is not over QUIC: why not.
    pub(crate) why_not_quic: Option<String>,
}

/// A better connection than the one in use, which the entry has taken.
pub(crate) struct Better {
    pub(crate) joined: Joined,
    pub(crate) hello: Hello,
    pub(crate) way: Way,
}

/// Dials an entry. QUIC has the head start that is given, unless it fails before.
pub(crate) async fn dial(
    config: &DialConfig,
    directory: &dyn Directory,
    target: &Target,
    head_start: Duration,
) -> Result<Dialled, TunnelError> {
    let mut over_quic = pin!(first_of(config, directory, target, Transport::Quic));
    if !target.ways.iter().any(|way| way.transport() == Transport::Tcp) {
        return over_quic.await;
    }
    let failed = tokio::select! {
        outcome = &mut over_quic => match outcome {
            Ok(dialled) => return Ok(dialled),
            Err(quic) => Some(quic),
        },
        () = sleep(head_start) => None,
    };
    let mut over_tcp = pin!(first_of(config, directory, target, Transport::Tcp));
    let instead = |quic: TunnelError, tcp: Result<Dialled, TunnelError>| match tcp {
        Ok(tcp) => Ok(Dialled { why_not_quic: Some(quic.to_string()), ..tcp }),
        Err(tcp) => Err(TunnelError::NoWay { quic: Box::new(quic), tcp: Box::new(tcp) }),
    };
    if let Some(quic) = failed {
        return instead(quic, over_tcp.await);
    }
    tokio::select! {
        outcome = &mut over_quic => match outcome {
            Ok(quic) => Ok(quic),
            Err(quic) => instead(quic, over_tcp.await),
        },
        outcome = &mut over_tcp => match outcome {
            Ok(tcp) => {
                let why = "nothing came back over QUIC in time: UDP may be blocked on the way".into();
                Ok(Dialled { why_not_quic: Some(why), ..tcp })
            }
            Err(tcp) => match over_quic.await {
                Ok(quic) => Ok(quic),
                Err(quic) => instead(quic, Err(tcp)),
            },
        },
    }
}

/// Dials all addresses of one transport, a little apart, and takes the first that answers with the right key.
async fn first_of(
    config: &DialConfig,
    directory: &dyn Directory,
    target: &Target,
    transport: Transport,
) -> Result<Dialled, TunnelError> {
    let ways = target.ways.iter().filter(|way| way.transport() == transport);
    let mut attempts: FuturesUnordered<_> = (0_u32..)
        .zip(ways)
        .map(|(index, way)| async move {
            sleep(ADDRESS_STAGGER * index).await;
            let link = directory.dial(&config.key, target.entry, way).await?;
            Ok::<_, TunnelError>(Dialled { link, way: way.clone(), why_not_quic: None })
        })
        .collect();
    let mut last = TunnelError::Protocol("the entry has no address".into());
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(dialled) => return Ok(dialled),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// While a tunnel goes over TCP: tries QUIC again, soon and then ever more seldom, until the entry has taken a connection over it.
pub(crate) async fn better(config: &DialConfig, directory: &dyn Directory, target: &Target) -> Better {
    let mut random = fastrand::Rng::with_seed(config.seed ^ 2);
    let mut pause = tuning::QUIC_AGAIN_MIN;
    loop {
        // Many nodes of one network come here in one moment, when its firewall changes.
        sleep(pause.mul_f64(0.5 + random.f64() / 2.0)).await;
        pause = (pause * 2).min(tuning::QUIC_AGAIN_MAX);
        match over_quic(config, directory, target).await {
            Ok(better) => return better,
            Err(error) => {
                debug!(entry = %target.entry.short(), %error, "QUIC does not come up; the tunnel stays on TCP")
            }
        }
    }
}

async fn over_quic(config: &DialConfig, directory: &dyn Directory, target: &Target) -> Result<Better, TunnelError> {
    let dialled = first_of(config, directory, target, Transport::Quic).await?;
    let greeted = greet(dialled.link, target).await?;
    let hello = greeted.hello.clone();
    Ok(Better { joined: join(config, greeted, 0).await?, hello, way: dialled.way })
}
