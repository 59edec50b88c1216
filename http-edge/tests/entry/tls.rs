//! https: certificates from files, taken up anew without a restart, and clients that speak no TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::{Answer, Entry, fails, in_time, say, until};

/// Writes a new certificate and its key; who trusts it trusts no other.
pub(crate) fn certificate(directory: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["entry.test".into()]).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

pub(crate) async fn connect(
    entry: &Entry,
    trusted: &CertificateDer<'static>,
    alpn: &[&[u8]],
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(entry.http).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("entry.test").unwrap(), stream).await
}

pub(crate) async fn get(mut stream: TlsStream<TcpStream>, target: &str) -> Answer {
    let request = format!("GET {target} HTTP/1.1\r\nhost: entry.test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    in_time("an answer", stream.read_to_end(&mut all)).await.unwrap();
    Answer::parse(&all)
}

pub(crate) const FILES: [&str; 4] = ["--tls-cert", "cert.pem", "--tls-key", "key.pem"];

#[tokio::test]
async fn https_speaks_http2_where_the_client_does_and_http1_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let trusted = certificate(directory.path());
    let entry = Entry::start_in(directory, ["127.0.0.1:0"; 3], &FILES).await;
    assert_eq!(entry.ready["scheme"], "https");
    let both = connect(&entry, &trusted, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    for alpn in [&[b"http/1.1".as_slice()][..], &[]] {
        let answer = get(connect(&entry, &trusted, alpn).await.unwrap(), "/").await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("hedgerow-entry"));
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let old = certificate(directory.path());
    let entry = Entry::start_in(directory, ["127.0.0.1:0"; 3], &FILES).await;
    std::fs::write(entry.path("cert.pem"), "broken").unwrap();
    entry.signal("HUP");
    until("the broken file is reported", async || entry.log().contains("the old one stays in use").then_some(())).await;
    assert!(connect(&entry, &old, &[]).await.is_ok(), "the old one serves on");
    let new = certificate(entry.directory.path());
    // Without a signal: the files are looked at.
    until("the new certificate serves", async || connect(&entry, &new, &[]).await.ok()).await;
    assert!(connect(&entry, &old, &[]).await.is_err());
    let newest = certificate(entry.directory.path());
    entry.signal("HUP");
    until("the newest certificate serves", async || connect(&entry, &newest, &[]).await.ok()).await;
}

#[tokio::test]
async fn who_speaks_no_tls_is_hung_up_on_and_nobody_else_notices() {
    let directory = tempfile::tempdir().unwrap();
    let trusted = certificate(directory.path());
    let entry = Entry::start_in(directory, ["127.0.0.1:0"; 3], &FILES).await;
    let open = connect(&entry, &trusted, &[]).await.unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 0], &[0; 4096]] {
        let said = say(entry.http, garbage).await;
        assert!(!said.starts_with(b"HTTP/"), "{said:?}");
    }
    assert_eq!(get(open, "/health").await.status, 200);
}

#[tokio::test]
async fn certificates_that_cannot_serve_stop_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let arguments = [&["--listen", "127.0.0.1:0"][..], &FILES].concat();
    assert!(fails(at, &arguments, 1).contains("cert.pem"));
    certificate(at);
    let other = rcgen::KeyPair::generate().unwrap();
    std::fs::write(at.join("key.pem"), other.serialize_pem()).unwrap();
    assert!(fails(at, &arguments, 1).contains("does not belong"));
}
