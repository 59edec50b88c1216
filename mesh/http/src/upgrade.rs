//! Upgraded connections (WebSockets and other protocols over HTTP/1.1): after 101 the bytes of both sides are copied, and
//! nobody looks at them.

use std::io;
use std::time::Duration;

use http::HeaderValue;
use http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::debug;

use crate::connection::Active;
use crate::headers;

/// Bytes copied at once: a whole QUIC packet's worth several times over, and little enough for thousands of idle
/// WebSockets.
const COPY_BYTES: usize = 8 * 1024;

/// What a client asks to change to, and its connection for when that has happened.
pub(crate) struct Asked {
    pub(crate) protocol: HeaderValue,
    pub(crate) client: OnUpgrade,
}

/// The upgrade that a request asks for and a service may be asked for. HTTP/2 in the clear is not: its frames would
/// pass requests by this proxy unseen.
pub(crate) fn asked(parts: &mut Parts) -> Option<Asked> {
    let protocol = headers::upgrade_asked(parts)?;
    let h2c = protocol.as_bytes().split(|b| *b == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    let client = parts.extensions.remove::<OnUpgrade>()?;
    (!h2c).then_some(Asked { protocol, client })
}

/// Copies both ways until one side has ended and the other has had its time, or anything breaks. The exchange is cut
/// off when it is over, and the service's connection closed with it.
pub(crate) async fn copy(client: OnUpgrade, service: OnUpgrade, active: Active, linger: Duration) {
    let ended = async {
        let (client, service) = tokio::try_join!(client, service).map_err(io::Error::other)?;
        splice(client, service, linger).await
    };
    if let Err(error) = ended.await {
        debug!(%error, "an upgraded connection ended");
    }
    active.give_up();
}

async fn splice(client: Upgraded, service: Upgraded, linger: Duration) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let (mut from_service, mut to_service) = tokio::io::split(TokioIo::new(service));
    let up = one_way(&mut from_client, &mut to_service);
    let down = one_way(&mut from_service, &mut to_client);
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut up => {
            ended?;
            tokio::time::timeout(linger, down).await.map_err(|_| io::ErrorKind::TimedOut)?
        }
        ended = &mut down => {
            ended?;
            tokio::time::timeout(linger, up).await.map_err(|_| io::ErrorKind::TimedOut)?
        }
    }
}

async fn one_way(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buf = vec![0; COPY_BYTES];
    loop {
        let got = from.read(&mut buf).await?;
        if got == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buf[..got]).await?;
        to.flush().await?;
    }
}
