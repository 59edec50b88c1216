//! Bytes as no well-behaved client sends them, and what comes back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What came back until the other side closed or fell silent.
#[derive(Debug)]
pub(super) struct Reply {
    /// The status of the first answer; 0 if nothing came.
    pub(super) status: u16,
    /// All of it, as text.
    pub(super) text: String,
    /// Whether the other side closed the connection.
    pub(super) closed: bool,
}

impl Reply {
    /// How many answers came.
    pub(super) fn answers(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with("HTTP/1.1 ")).count()
    }

    /// Its first line.
    pub(super) fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or("(nothing)")
    }
}

/// Silence after which no more is expected, once something has come.
const SILENCE: Duration = Duration::from_millis(300);
/// How long the first byte may take.
const FIRST_BYTE: Duration = Duration::from_secs(10);

/// Sends these bytes and reads what comes.
pub(super) async fn send(to: SocketAddr, bytes: &[u8]) -> Result<Reply> {
    let mut stream = TcpStream::connect(to).await.context("no connection")?;
    // An entry that refuses early may close before all was written: what it said counts.
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    let closed = loop {
        let patience = if all.is_empty() { FIRST_BYTE } else { SILENCE };
        let mut piece = [0; 16 * 1024];
        match tokio::time::timeout(patience, stream.read(&mut piece)).await {
            Ok(Ok(0)) | Ok(Err(_)) => break true,
            Ok(Ok(read)) => all.extend_from_slice(&piece[..read]),
            Err(_) if all.is_empty() => return Err(anyhow!("nothing came back within {FIRST_BYTE:?}")),
            Err(_) => break false,
        }
    };
    let text = String::from_utf8_lossy(&all).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Reply { status, text, closed })
}
