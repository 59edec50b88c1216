//! The only place where the entry dials out, and what guards it: a guest says where, and it is a stranger.
//!
//! ```text
//! host name ─▶ resolver ─▶ all addresses public? ─▶ connect to those very addresses ─▶ TLS for that very name
//! ```
//!
//! The name is resolved for each connection and the answer is used for that connection alone, so a name that changes its
//! mind between a check and its use (DNS rebinding) changes nothing. Nothing here reads an answer: a redirect is passed on to
//! the client like any other, and never followed.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_tunnel::BoxIo;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::guest_url::{GuestUrl, UrlPolicy};
use super::public::is_public;
use super::why_not::Unreachable;

/// How long it may take until a connection can be used. Below the time that a request waits for a node to accept it.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one address may take: so a second one has its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses of a host that are tried. All of them are checked.
const ADDRESSES_TRIED_MAX: usize = 3;
/// Lookups at once. Each holds a thread, for as long as the system's resolver takes, whoever has stopped waiting for it.
const LOOKUPS_MAX: usize = 32;

/// Dials guests.
pub(crate) struct Dialler {
    policy: UrlPolicy,
    tls: TlsConnector,
    lookups: Arc<Semaphore>,
}

impl Dialler {
    /// One that dials what this policy allows, and trusts whom browsers trust.
    pub(crate) fn new(policy: UrlPolicy) -> Result<Self, rustls::Error> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { policy, tls: Arc::new(config).into(), lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) })
    }

    /// Which URLs may be dialled.
    pub(crate) fn policy(&self) -> &UrlPolicy {
        &self.policy
    }

    /// A fresh connection to the host, on which HTTP/1.1 may be spoken.
    pub(crate) async fn dial(&self, url: &GuestUrl) -> Result<BoxIo, Unreachable> {
        timeout(DIAL_TIMEOUT, self.dial_unhurried(url)).await.unwrap_or(Err(Unreachable::TooSlow))
    }

    async fn dial_unhurried(&self, url: &GuestUrl) -> Result<BoxIo, Unreachable> {
        let server_name = url.server_name().map_err(|_| Unreachable::Unresolved)?;
        let addresses = self.resolve(url).await?;
        let stream = connect(&addresses).await?;
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection to a guest keeps its delay");
        }
        let Some(server_name) = server_name else { return Ok(Box::new(stream)) };
        match self.tls.connect(server_name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                debug!(host = url.host, %error, "TLS with a guest failed");
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                Err(match inner {
                    Some(rustls::Error::InvalidCertificate(_)) => Unreachable::Certificate,
                    _ => Unreachable::Tls,
                })
            }
        }
    }

    /// The host's addresses, if each of them may be dialled.
    async fn resolve(&self, url: &GuestUrl) -> Result<Vec<SocketAddr>, Unreachable> {
        // Not `lookup_host` itself, which does the same: who stops waiting for that lets its thread run on uncounted.
        let permit = self.lookups.clone().acquire_owned().await.map_err(|_| Unreachable::Unresolved)?;
        let at = (url.host.clone(), url.port);
        let lookup = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            at.to_socket_addrs().map(Iterator::collect::<Vec<_>>)
        });
        let addresses = match lookup.await {
            Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
            Ok(Ok(_)) => return Err(Unreachable::Unresolved),
            Ok(Err(error)) => {
                debug!(host = url.host, %error, "a guest's host does not resolve");
                return Err(Unreachable::Unresolved);
            }
            Err(_) => return Err(Unreachable::Unresolved),
        };
        may_be_dialled(&self.policy, &addresses)?;
        Ok(addresses)
    }
}

/// One address that is not public condemns all: the name is not what it should be.
fn may_be_dialled(policy: &UrlPolicy, addresses: &[SocketAddr]) -> Result<(), Unreachable> {
    match policy {
        UrlPolicy::Public(_) if !addresses.iter().all(|address| is_public(address.ip())) => Err(Unreachable::NotPublic),
        UrlPolicy::Public(_) | UrlPolicy::Any => Ok(()),
    }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Unreachable> {
    let mut outcome = Unreachable::NoConnection;
    for address in addresses.iter().take(ADDRESSES_TRIED_MAX) {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                debug!(%address, %error, "a guest's address takes no connection");
                outcome = Unreachable::NoConnection;
            }
            Err(_) => outcome = Unreachable::TooSlow,
        }
    }
    Err(outcome)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn one_address_that_is_not_public_condemns_the_name() {
        let policy = UrlPolicy::Public(vec![]);
        let dialled = |texts: &[&str]| may_be_dialled(&policy, &addresses(texts));
        assert_eq!(dialled(&["1.1.1.1:443", "[2606:4700::1]:443"]), Ok(()));
        for near in ["127.0.0.1:443", "[::1]:443", "10.0.0.1:443", "169.254.169.254:443", "[::ffff:192.168.0.1]:443"] {
            assert_eq!(dialled(&["1.1.1.1:443", near]), Err(Unreachable::NotPublic), "{near}");
            assert_eq!(may_be_dialled(&UrlPolicy::Any, &addresses(&[near])), Ok(()), "{near}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_dialled() {
        let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = canary.local_addr().unwrap().port();
        let guarded = Dialler::new(UrlPolicy::Public(vec!["localhost".parse().unwrap()])).unwrap();
        for host in ["localhost", "127.0.0.1", "[::1]", "127.1", "0x7f000001", "2130706433", "0"] {
            let url = format!("https://{host}:{port}").parse().unwrap();
            let refused = guarded.dial(&url).await.err();
            assert!(matches!(refused, Some(Unreachable::NotPublic | Unreachable::Unresolved)), "{host}: {refused:?}");
        }
        let url = format!("https://localhost:{port}").parse().unwrap();
        assert_eq!(guarded.dial(&url).await.err(), Some(Unreachable::NotPublic));
        // What did not come in until now did not come: the next one is the first.
        let url = format!("http://127.0.0.1:{port}").parse().unwrap();
        let open = Dialler::new(UrlPolicy::Any).unwrap();
        let (dialled, accepted) = tokio::join!(open.dial(&url), canary.accept());
        assert!(dialled.is_ok());
        let (_stream, from) = accepted.unwrap();
        assert!(futures_util::FutureExt::now_or_never(canary.accept()).is_none(), "{from} was the only one");
    }

    #[tokio::test]
    async fn who_takes_no_connection_and_who_speaks_no_tls_are_told_apart() {
        let open = Dialler::new(UrlPolicy::Any).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (dialled, ()) = tokio::join!(open.dial(&url), async { drop(listener.accept().await.unwrap()) });
        assert_eq!(dialled.err(), Some(Unreachable::Tls));
        drop(listener);
        assert_eq!(open.dial(&url).await.err(), Some(Unreachable::NoConnection));
    }
}
