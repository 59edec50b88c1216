//! A WebSocket that echoes what it gets, until the other side closes it.

use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::evidence::Run;
use super::routes::{AnswerBody, full};

/// Answers 101 and echoes; 400 if it is no WebSocket's request.
pub(super) fn accept(mut run: Run, request: Request<Incoming>) -> Response<AnswerBody> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let Some(accept) = key.and_then(|key| HeaderValue::try_from(key).ok()) else {
        return full(run, StatusCode::BAD_REQUEST, "text/plain", "a WebSocket is served here\n".to_owned());
    };
    let ledger = run.ledger();
    run.complete();
    let mut response = full(run, StatusCode::SWITCHING_PROTOCOLS, "text/plain", String::new());
    response.headers_mut().remove(hyper::header::CONTENT_TYPE);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    tokio::spawn(async move {
        let mut run = ledger.begin(None);
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                if echo(socket).await {
                    run.complete();
                }
            }
            Err(error) => tracing::debug!(%error, "an upgrade failed"),
        }
    });
    response
}

/// Whether it was closed as a WebSocket should be.
async fn echo(mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) -> bool {
    while let Some(message) = socket.next().await {
        match message {
            Ok(message) if message.is_text() || message.is_binary() => {
                if let Err(error) = socket.send(message).await {
                    tracing::debug!(%error, "a WebSocket broke");
                    return false;
                }
            }
            // The library answers pings and closes itself.
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a WebSocket broke");
                return false;
            }
        }
    }
    true
}
