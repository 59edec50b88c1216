//! The entry as the world meets it: https with a certificate from a file, HTTP/2, and curl as the client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::{Check, must};
use crate::client::PATIENCE;
use crate::federation::{Lab, NodeSpec, READY_WITHIN, bound};
use crate::process::{Launch, Process};
use crate::service::{Kind, hex};

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("http2", "HTTP/2 without TLS: bodies both ways over one connection", &["curl"], http2),
        Check::new(
            "https",
            "https by certificate files: a node joins, curl asks over HTTP/2 and HTTP/1.1, a renewed certificate is taken up",
            &["curl", "openssl"],
            https,
        ),
    ]
}

async fn http2(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 16), &entry).await?;
    let body: Vec<u8> = (0..3_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let file = lab.workdir.path().join("body");
    std::fs::write(&file, &body)?;
    let url = |path: &str| format!("{}/service/kit{path}", entry.url());
    let upload = format!("@{}", file.display());
    let arguments = ["--http2-prior-knowledge", "--data-binary", &upload, &url("/digest")];
    let digest = curl(&arguments).await?;
    must!(digest.starts_with("2 200 "), "an upload was answered {digest}");
    must!(digest.contains(&hex(&Sha256::digest(&body))), "3 MB arrived as {digest}");
    // Once each: curl 7.88 breaks off when it uses such a connection again, to nginx as well.
    let bytes = curl(&["--http2-prior-knowledge", "-o", "/dev/null", &url("/bytes?n=3000000")]).await?;
    must!(bytes.starts_with("2 200"), "a download was answered {bytes}");
    let missing = curl(&["--http2-prior-knowledge", &url("/status/404")]).await?;
    must!(missing == "2 404 404 as asked\n", "a 404 came as {missing}");
    Ok("3 MB up, 3 MB down, a 404".to_owned())
}

async fn https(lab: Arc<Lab>) -> Result<String> {
    let authority = Authority::new(lab.workdir.path(), "first").await?;
    let HttpsEntry { process: entry, port } = authority.entry(&lab, &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let node = authority.node(&lab, port, &format!("kit=http://{}", kit.listen)).await?;

    let url = format!("https://localhost:{port}/service/kit/hello");
    let Authority { ca: first_ca, certificate, key } = authority;
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let retry = ["--retry", "5", "--retry-delay", "1"];
        let answer = curl(&[&["--cacert", &first_ca, flag, &url], &retry[..]].concat()).await?;
        must!(answer.starts_with(&format!("{version} 200 hello from kit")), "over {flag} it was answered {answer}");
    }
    let many = format!("https://localhost:{port}/service/kit/bytes?n=[1000-1199]");
    let sizes = curl(&["--cacert", &first_ca, "--http2", "-Z", "-o", "/dev/null", &many]).await?;
    must!(sizes.matches("2 200").count() == 200, "200 requests in parallel gave {sizes}");
    let plain = curl(&[&format!("http://127.0.0.1:{port}/health")]).await;
    must!(
        plain.is_err() || !plain.as_ref().is_ok_and(|answer| answer.contains(" 200 ")),
        "it speaks in the clear: {plain:?}"
    );

    // Renewed by somebody else: the files change in place.
    let (second, renewed, renewed_key) = certificates(lab.workdir.path(), "second").await?;
    std::fs::copy(&renewed_key, &key)?;
    std::fs::copy(&renewed, &certificate)?;
    entry.signal(rustix::process::Signal::HUP)?;
    let second_ca = second.display().to_string();
    let begin = std::time::Instant::now();
    while curl(&["--cacert", &second_ca, &url]).await.is_err() {
        must!(begin.elapsed() < READY_WITHIN, "a renewed certificate is not taken up");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    must!(curl(&["--cacert", &first_ca, &url]).await.is_err(), "the old certificate is still shown");
    must!(entry.is_running() && node.is_running(), "a process has ended");
    Ok("joined over https; HTTP/2 and HTTP/1.1 by ALPN; a renewed certificate was taken up on SIGHUP".to_owned())
}

/// An authority of our own, with a certificate for `localhost` that it has signed.
pub(super) struct Authority {
    /// Its own certificate: who trusts it trusts the other.
    pub(super) ca: String,
    certificate: PathBuf,
    key: PathBuf,
}

/// An entry that serves https.
pub(super) struct HttpsEntry {
    pub(super) process: Process,
    pub(super) port: u16,
}

impl Authority {
    pub(super) async fn new(directory: &Path, name: &str) -> Result<Self> {
        let (authority, certificate, key) = certificates(directory, name).await?;
        Ok(Self { ca: authority.display().to_string(), certificate, key })
    }

    /// An entry with that certificate.
    pub(super) async fn entry(&self, lab: &Lab, extra: &[&str]) -> Result<HttpsEntry> {
        let anywhere = "127.0.0.1:0";
        let process = Launch::new("entry", &lab.binaries.entry)
            .args(["--listen", anywhere, "--tunnel-listen", anywhere, "--key-file"])
            .arg(lab.workdir.path().join("entry.key"))
            .arg("--tls-cert")
            .arg(&self.certificate)
            .arg("--tls-key")
            .arg(&self.key)
            .args(extra)
            .ready_file(&lab.workdir)
            .start(&lab.workdir)?;
        let port = bound(&process.ready(READY_WITHIN).await?, "listen")?.port();
        Ok(HttpsEntry { process, port })
    }

    /// A node that offers this service there.
    pub(super) async fn node(&self, lab: &Lab, port: u16, service: &str) -> Result<Process> {
        let node = Launch::new("worker", &lab.binaries.node)
            .args(["join", &format!("https://localhost:{port}"), "--service", service, "--entry-ca", &self.ca])
            .arg("--data-dir")
            .arg(lab.data_dir("worker"))
            .ready_file(&lab.workdir)
            .start(&lab.workdir)?;
        node.ready(READY_WITHIN).await.context("the node proves the entry by its certificate")?;
        Ok(node)
    }
}

/// Version, status and body, as curl has them; an error if curl has none.
pub(super) async fn curl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", &PATIENCE.as_secs().to_string(), "-w", "%{stderr}%{http_version} %{http_code} \n"])
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .context("curl does not start")?;
    let (said, body) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    let short: String = said.chars().take(300).collect();
    must!(output.status.success(), "curl said {short}");
    Ok(format!("{}{body}", said.trim_start().replace('\n', "")))
}

/// An authority of this name, and a certificate for `localhost` that it has signed, with its key.
pub(super) async fn certificates(directory: &Path, name: &str) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let place = |what: &str| directory.join(format!("{name}-{what}.pem"));
    let [authority, authority_key, certificate, key, request, extensions] =
        ["ca", "ca-key", "cert", "key", "request", "extensions"].map(place);
    std::fs::write(&extensions, "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")?;
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let text = |path: &PathBuf| path.display().to_string();
    let (ca, ca_key, cert, key_text) = (text(&authority), text(&authority_key), text(&certificate), text(&key));
    let (csr, ext) = (text(&request), text(&extensions));
    let subject = format!("/CN={name} authority");
    let steps: [Vec<&str>; 3] = [
        [&["req", "-x509", "-days", "30", "-subj", &subject, "-keyout", &ca_key, "-out", &ca], &new_key[..]].concat(),
        [&["req", "-subj", "/CN=localhost", "-keyout", &key_text, "-out", &csr], &new_key[..]].concat(),
        vec![
            "x509",
            "-req",
            "-days",
            "30",
            "-in",
            &csr,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-extfile",
            &ext,
            "-out",
            &cert,
        ],
    ];
    for arguments in steps {
        let output = Command::new("openssl").args(arguments).output().await.context("openssl does not start")?;
        must!(output.status.success(), "openssl said {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((authority, certificate, key))
}
