//! The only place that dials agents, and what guards it: a guest says where, and it is a stranger.
//!
//! ```text
//! host name ─▶ resolver ─▶ all addresses public? ─▶ connect to those very addresses ─▶ TLS for that very name
//! ```
//!
//! The name is resolved for each connection and the answer is used for that connection alone, so a name that changes its
//! mind between a check and its use (DNS rebinding) changes nothing. Nothing here reads an answer: a redirect is passed on to
//! the client like any other, and never followed.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_contract::url::{NotRoutable, Scheme, UrlPolicy, UrlTarget, is_public};
use hedgerow_tunnel::BoxIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::why_not::Unreachable;

/// How long it may take until a connection can be used. Below the time that a request waits for a node to accept it.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one address may take: so a second one has its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses of a host that are tried. All of them are checked.
const ADDRESSES_TRIED_MAX: usize = 3;
/// Lookups at once. Each holds a thread, for as long as the system's resolver takes, whoever has stopped waiting for it.
const LOOKUPS_MAX: usize = 32;

/// Of a host that is no name in the sense of TLS, such as one with an underscore at its end.
const NO_CERTIFICATE: NotRoutable = NotRoutable::Form("no certificate can be for its host");

/// What turns a name and a port into addresses. It may block.
type Resolver = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Dials guests.
pub struct Dialler {
    policy: UrlPolicy,
    tls: TlsConnector,
    resolver: Arc<Resolver>,
    lookups: Arc<Semaphore>,
}

impl Dialler {
    /// One that dials what this policy allows, and trusts whom browsers trust.
    pub fn new(policy: UrlPolicy) -> Result<Self, rustls::Error> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        // What `tokio::net::lookup_host` does, too. But who stops waiting for that lets its thread run on uncounted.
        let system = |host: &str, port| (host, port).to_socket_addrs().map(Iterator::collect);
        Self::with(policy, roots, Arc::new(system))
    }

    fn with(policy: UrlPolicy, roots: RootCertStore, resolver: Arc<Resolver>) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
        Ok(Self { policy, tls: Arc::new(config).into(), resolver, lookups })
    }

    /// Which URLs may be dialled.
    pub fn policy(&self) -> &UrlPolicy {
        &self.policy
    }

    /// A fresh connection to the host, on which HTTP/1.1 may be spoken.
    pub(crate) async fn dial(&self, url: &UrlTarget) -> Result<BoxIo, Unreachable> {
        timeout(DIAL_TIMEOUT, self.dial_unhurried(url)).await.unwrap_or(Err(Unreachable::TooSlow))
    }

    async fn dial_unhurried(&self, url: &UrlTarget) -> Result<BoxIo, Unreachable> {
        let server_name = server_name(url).map_err(|_| Unreachable::Unresolved)?;
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
    async fn resolve(&self, url: &UrlTarget) -> Result<Vec<SocketAddr>, Unreachable> {
        let permit = self.lookups.clone().acquire_owned().await.map_err(|_| Unreachable::Unresolved)?;
        let (resolver, host, port) = (self.resolver.clone(), url.host.clone(), url.port);
        let lookup = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            resolver(&host, port)
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

/// The name that the certificate of a host has to be for; none in the clear.
pub(crate) fn server_name(url: &UrlTarget) -> Result<Option<ServerName<'static>>, NotRoutable> {
    match url.scheme {
        Scheme::Http => Ok(None),
        Scheme::Https => ServerName::try_from(url.host.clone()).map(Some).map_err(|_| NO_CERTIFICATE),
    }
}

/// One address that is not public condemns all: the name is not what it should be.
fn may_be_dialled(policy: &UrlPolicy, addresses: &[SocketAddr]) -> Result<(), Unreachable> {
    let may = policy.allow_private || addresses.iter().all(|address| is_public(address.ip()));
    if may { Ok(()) } else { Err(Unreachable::NotPublic) }
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use hedgerow_contract::url::check;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn any() -> UrlPolicy {
        UrlPolicy { suffixes: vec![], allow_private: true }
    }

    fn under(suffix: &str) -> UrlPolicy {
        UrlPolicy { suffixes: vec![suffix.parse().expect(suffix)], allow_private: false }
    }

    fn url(text: &str) -> UrlTarget {
        check(text, &any()).expect(text)
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn one_address_that_is_not_public_condemns_the_name() {
        let policy = UrlPolicy::default();
        let dialled = |texts: &[&str]| may_be_dialled(&policy, &addresses(texts));
        assert_eq!(dialled(&["1.1.1.1:443", "[2606:4700::1]:443"]), Ok(()));
        for near in ["127.0.0.1:443", "[::1]:443", "10.0.0.1:443", "169.254.169.254:443", "[::ffff:192.168.0.1]:443"] {
            assert_eq!(dialled(&["1.1.1.1:443", near]), Err(Unreachable::NotPublic), "{near}");
            assert_eq!(may_be_dialled(&any(), &addresses(&[near])), Ok(()), "{near}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_dialled() {
        let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = canary.local_addr().unwrap().port();
        let guarded = Dialler::new(under("localhost")).unwrap();
        // What no check lets pass is not dialled either.
        for host in ["localhost", "127.0.0.1", "::1", "127.1", "0x7f000001", "2130706433", "0"] {
            let url = UrlTarget { scheme: Scheme::Https, host: host.into(), port, path_prefix: String::new() };
            let refused = guarded.dial(&url).await.err();
            assert!(matches!(refused, Some(Unreachable::NotPublic | Unreachable::Unresolved)), "{host}: {refused:?}");
        }
        let localhost = url(&format!("https://localhost:{port}"));
        assert_eq!(guarded.dial(&localhost).await.err(), Some(Unreachable::NotPublic));
        // What did not come in until now did not come: the next one is the first.
        let home = url(&format!("http://127.0.0.1:{port}"));
        let open = Dialler::new(any()).unwrap();
        let (dialled, accepted) = tokio::join!(open.dial(&home), canary.accept());
        assert!(dialled.is_ok());
        let (_stream, from) = accepted.unwrap();
        assert!(canary.accept().now_or_never().is_none(), "{from} was the only one");
    }

    #[tokio::test]
    async fn a_name_is_asked_once_for_each_connection_and_its_answer_is_what_is_dialled() {
        let (first, second) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let answers = [&first, &second].map(|listener| listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let rebinding = {
            let asked = asked.clone();
            move |_: &str, _| Ok(vec![answers[asked.fetch_add(1, Ordering::SeqCst)]])
        };
        let open = Dialler::with(any(), RootCertStore::empty(), Arc::new(rebinding)).unwrap();
        let url = url("http://flips.example");
        let (dialled, accepted) = tokio::join!(open.dial(&url), first.accept());
        assert!(dialled.is_ok() && accepted.is_ok());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // The next connection asks again, and a policy judges what it is told then.
        let flips = Arc::new(move |_: &str, _| Ok(vec![answers[1], "1.1.1.1:80".parse().unwrap()]));
        let guarded = Dialler::with(under("flips.example"), RootCertStore::empty(), flips).unwrap();
        assert_eq!(guarded.dial(&url).await.err(), Some(Unreachable::NotPublic));
        assert!(second.accept().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_host_has_a_certificate_for_its_name_by_somebody_who_is_trusted() {
        let made = rcgen::generate_simple_self_signed(vec!["agent.example".into()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async || acceptor.accept(listener.accept().await.unwrap().0).await;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let here: Arc<Resolver> = Arc::new(move |_: &str, _| Ok(vec![address]));
        let open = Dialler::with(any(), roots, here.clone()).unwrap();

        let right = url("https://agent.example");
        let (dialled, accepted) = tokio::join!(open.dial(&right), serve());
        let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!(accepted.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "nothing else is spoken");
        assert_eq!(accepted.get_ref().1.server_name(), Some("agent.example"));
        dialled.write_all(b"ping").await.unwrap();
        dialled.flush().await.unwrap();
        let mut got = [0; 4];
        accepted.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");

        let other = url("https://other.example");
        let (dialled, _) = tokio::join!(open.dial(&other), serve());
        assert_eq!(dialled.err(), Some(Unreachable::Certificate), "it is for another name");
        let strict = Dialler::with(any(), RootCertStore::empty(), here).unwrap();
        let (dialled, _) = tokio::join!(strict.dial(&right), serve());
        assert_eq!(dialled.err(), Some(Unreachable::Certificate), "nobody trusts it");
    }

    #[tokio::test]
    async fn who_takes_no_connection_and_who_speaks_no_tls_are_told_apart() {
        let open = Dialler::new(any()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = url(&format!("https://{}", listener.local_addr().unwrap()));
        let (dialled, ()) = tokio::join!(open.dial(&url), async { drop(listener.accept().await.unwrap()) });
        assert_eq!(dialled.err(), Some(Unreachable::Tls));
        drop(listener);
        assert_eq!(open.dial(&url).await.err(), Some(Unreachable::NoConnection));
    }
}
