//! `GET /mesh/bootstrap`: asks one address of an entry who it is and where its tunnel listens.
//!
//! Over https the certificate says that this is the entry, and so vouches for the key that it names. Over plain http anybody in
//! between could name a key of theirs: that is taken only from loopback and private addresses, or when the operator has named
//! the key himself.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_proto::scope::is_near;
use hedgerow_tunnel::{Transport, Way};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::entry_url::{EntryUrl, Scheme};

/// The whole of it, from the first packet to the last byte of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(8);
/// An answer holds a handful of records of a KiB; more than this is not one.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// Ways over one transport that are taken from one answer: an entry has one, at each address of a name.
const WAYS_MAX: usize = 8;

/// Asks entries. Cheap to clone.
#[derive(Clone)]
pub struct Bootstrap {
    tls: Arc<rustls::ClientConfig>,
    /// When not empty: the only keys that are taken.
    keys: Arc<[NodeId]>,
}

/// What an entry says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The federation that it serves.
    pub federation: FederationId,
    /// Its key.
    pub entry: NodeId,
    /// The ways to its tunnels.
    pub ways: Vec<Way>,
}

/// Why an entry could not be asked, or its answer not taken.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// No connection, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No TLS: mostly a certificate that is not the entry's, or that nobody known vouches for.
    #[error("{0}. If the entry has a certificate of its operator's own, name that with --entry-ca")]
    Tls(io::Error),
    /// The TLS library takes the host for no name.
    #[error("{0:?} is not a host name that a certificate could be for")]
    Name(String),
    /// The connection came up and HTTP did not.
    #[error("the answer is not HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// Some other answer; redirects too, which would let one host speak for another.
    #[error("GET /mesh/bootstrap was answered {0}; is this the address of a hedgerow entry?")]
    Status(http::StatusCode),
    /// The answer is too long, or broke off.
    #[error("the answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The answer is something else.
    #[error("the answer is not a hedgerow entry's: {0}")]
    Json(#[from] serde_json::Error),
    /// It names no tunnel that this node can dial.
    #[error("the entry names no tunnel that this version can dial")]
    NoTunnel,
    /// The answer comes over plain http from a public address.
    #[error(
        "plain http to a public address ({0}): anybody in between could answer. Use https, or name the key with --entry-key"
    )]
    Unproven(IpAddr),
    /// It has another key than the operator named.
    #[error(
        "it has the key {0}, which is none of those given as --entry-key: either the entry has a new key, or this is not the entry"
    )]
    WrongKey(NodeId),
    /// It took too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Why certificates for entries cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificates in {path}: {reason}")]
pub struct RootsError {
    /// The file.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Deserialize)]
struct Document {
    federation: String,
    entry: DocumentEntry,
}

#[derive(Deserialize)]
struct DocumentEntry {
    id: String,
    tunnel: Vec<DocumentTunnel>,
}

#[derive(Deserialize)]
struct DocumentTunnel {
    transport: String,
    host: Option<String>,
    port: u16,
}

impl Bootstrap {
    /// `roots`: certificates in PEM, in place of the web's usual ones. `keys`: when not empty, the only keys that are taken.
    pub fn new(roots: Option<&Path>, keys: Vec<NodeId>) -> Result<Self, RootsError> {
        let mut store = rustls::RootCertStore::empty();
        match roots {
            None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                add_roots(&mut store, path).map_err(|reason| RootsError { path: path.display().to_string(), reason })?
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| RootsError { path: "the TLS library".into(), reason: error.to_string() })?
            .with_root_certificates(store)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(tls), keys: keys.into() })
    }

    /// Whom it trusts to be an entry, for others who dial them.
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        self.tls.clone()
    }

    /// Asks the entry at this one address of `url`'s host.
    pub async fn ask(&self, url: &EntryUrl, address: IpAddr) -> Result<Introduction, BootstrapError> {
        timeout(TIMEOUT, self.ask_in_time(url, address)).await.map_err(|_| BootstrapError::Timeout)?
    }

    async fn ask_in_time(&self, url: &EntryUrl, address: IpAddr) -> Result<Introduction, BootstrapError> {
        let proven = url.scheme == Scheme::Https || !self.keys.is_empty();
        if !proven && !is_near(address) {
            return Err(BootstrapError::Unproven(address));
        }
        let stream = TcpStream::connect((address, url.port)).await?;
        let body = match url.scheme {
            Scheme::Http => fetch(stream, url).await?,
            Scheme::Https => {
                let name =
                    ServerName::try_from(url.host.clone()).map_err(|_| BootstrapError::Name(url.host.clone()))?;
                let connecting = TlsConnector::from(self.tls.clone()).connect(name, stream);
                fetch(connecting.await.map_err(BootstrapError::Tls)?, url).await?
            }
        };
        let introduction = introduction(&body, url, address).await?;
        if !self.keys.is_empty() && !self.keys.contains(&introduction.entry) {
            return Err(BootstrapError::WrongKey(introduction.entry));
        }
        Ok(introduction)
    }
}

fn add_roots(store: &mut rustls::RootCertStore, path: &Path) -> Result<(), String> {
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    if store.is_empty() { Err("there is no certificate in it".into()) } else { Ok(()) }
}

async fn fetch<S>(stream: S, url: &EntryUrl) -> Result<Bytes, BootstrapError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let mut request = http::Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = http::Uri::from_static("/mesh/bootstrap");
        let host = http::HeaderValue::try_from(url.authority()).map_err(|_| BootstrapError::Name(url.host.clone()))?;
        request.headers_mut().insert(http::header::HOST, host);
        let agent = http::HeaderValue::from_static(concat!("hedgerow-node/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(http::header::USER_AGENT, agent);
        let response = sender.send_request(request).await?;
        if response.status() != http::StatusCode::OK {
            return Err(BootstrapError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(BootstrapError::Body)?;
        Ok(body.to_bytes())
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        body = &mut exchange => body,
        // The connection may end before the answer has been read to its end.
        _ = &mut connection => exchange.await,
    }
}

async fn introduction(body: &[u8], url: &EntryUrl, address: IpAddr) -> Result<Introduction, BootstrapError> {
    let document: Document = serde_json::from_slice(body)?;
    let wrong = |what: &str| <serde_json::Error as serde::de::Error>::custom(format!("{what} is not an id"));
    let federation = document.federation.parse().map_err(|_| wrong("federation"))?;
    let entry = document.entry.id.parse().map_err(|_| wrong("entry.id"))?;
    let (quic, tcp) = (Transport::Quic.as_str(), Transport::Tcp.as_str());
    let mut over_quic = Vec::new();
    let mut over_tcp = Vec::new();
    for tunnel in document.entry.tunnel.iter().filter(|tunnel| tunnel.port != 0) {
        let transport = tunnel.transport.as_str();
        if transport != quic && transport != tcp {
            continue;
        }
        let host = tunnel.host.as_ref().unwrap_or(&url.host);
        let addresses: Vec<SocketAddr> = match &tunnel.host {
            None => vec![SocketAddr::new(address, tunnel.port)],
            Some(host) => tokio::net::lookup_host((host.as_str(), tunnel.port)).await?.collect(),
        };
        if transport == quic {
            over_quic.extend(addresses.into_iter().map(Way::Quic));
        } else {
            over_tcp.extend(addresses.into_iter().map(|address| Way::Tcp { address, host: host.clone() }));
        }
    }
    over_quic.truncate(WAYS_MAX);
    over_tcp.truncate(WAYS_MAX);
    let ways = [over_quic, over_tcp].concat();
    if ways.is_empty() { Err(BootstrapError::NoTunnel) } else { Ok(Introduction { federation, entry, ways }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Answers one connection with these bytes; what it was asked comes back.
    async fn answer(answer: String) -> (EntryUrl, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
            }
            // The client may hang up on an answer that is too long.
            let _ = stream.write_all(answer.as_bytes()).await;
            String::from_utf8(asked).unwrap()
        });
        (url, server)
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn document(tunnel: &str) -> String {
        format!(
            r#"{{"federation":"{}","entry":{{"id":"{}","tunnel":[{tunnel}]}},"ttl":60,"coordinators":[],"more":1}}"#,
            FederationId([1; 32]),
            NodeId([2; 32])
        )
    }

    const QUIC: &str = r#"{"transport":"pigeon","host":null,"port":9},{"transport":"quic","host":null,"port":4433}"#;
    const TCP: &str = r#"{"transport":"tcp","host":null,"port":443}"#;

    async fn ask(keys: Vec<NodeId>, said: String) -> Result<Introduction, BootstrapError> {
        let (url, server) = answer(said).await;
        let outcome = Bootstrap::new(None, keys).unwrap().ask(&url, LOOPBACK).await;
        let asked = server.await.unwrap();
        assert!(asked.starts_with("GET /mesh/bootstrap HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {}\r\n", url.authority())), "{asked}");
        outcome
    }

    #[tokio::test]
    async fn an_entry_introduces_itself() {
        let introduction = ask(vec![], ok(&document(QUIC))).await.unwrap();
        assert_eq!(
            introduction,
            Introduction {
                federation: FederationId([1; 32]),
                entry: NodeId([2; 32]),
                ways: vec![Way::Quic(SocketAddr::new(LOOPBACK, 4433))],
            }
        );
    }

    #[tokio::test]
    async fn the_ways_over_tcp_come_behind_those_over_quic_and_are_named_as_the_entry_is() {
        let introduction = ask(vec![], ok(&document(&format!("{TCP},{QUIC}")))).await.unwrap();
        let tcp = Way::Tcp { address: SocketAddr::new(LOOPBACK, 443), host: "127.0.0.1".into() };
        assert_eq!(introduction.ways, [Way::Quic(SocketAddr::new(LOOPBACK, 4433)), tcp]);
        assert!(ask(vec![], ok(&document(TCP))).await.is_ok(), "an entry may have no UDP");
    }

    #[tokio::test]
    async fn only_the_named_key_is_taken() {
        assert!(ask(vec![NodeId([2; 32])], ok(&document(QUIC))).await.is_ok());
        let other = ask(vec![NodeId([3; 32])], ok(&document(QUIC))).await;
        assert!(matches!(other, Err(BootstrapError::WrongKey(_))), "{other:?}");
    }

    #[tokio::test]
    async fn what_is_no_entry_is_told_apart() {
        let redirect = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n".to_owned();
        assert!(matches!(ask(vec![], redirect).await, Err(BootstrapError::Status(_))));
        assert!(matches!(ask(vec![], ok("<html>")).await, Err(BootstrapError::Json(_))));
        assert!(matches!(ask(vec![], ok(&document(""))).await, Err(BootstrapError::NoTunnel)));
        assert!(matches!(ask(vec![], "SSH-2.0-x\r\n\r\n".into()).await, Err(BootstrapError::Http(_))));
        let long = ok(&" ".repeat(BODY_BYTES_MAX + 1));
        assert!(matches!(ask(vec![], long).await, Err(BootstrapError::Body(_))));
    }

    #[tokio::test]
    async fn plain_http_is_for_near_addresses_unless_the_key_is_known() {
        let url: EntryUrl = "http://example.org".parse().unwrap();
        let public = "93.184.215.14".parse().unwrap();
        let outcome = Bootstrap::new(None, vec![]).unwrap().ask(&url, public).await;
        assert!(matches!(outcome, Err(BootstrapError::Unproven(_))), "{outcome:?}");
    }

    #[test]
    fn roots_that_are_none_are_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Bootstrap::new(Some(file.path()), vec![]).err().unwrap().to_string().contains("no certificate"));
        assert!(Bootstrap::new(Some(Path::new("/missing")), vec![]).is_err());
    }
}
