//! A local service: answers every request with `hello`, when the test lets it, and counts who is inside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::process::until;

pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    gate: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What the service has seen. Connections on which nothing is asked are probes, and not counted.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) inside: AtomicUsize,
    pub(crate) inside_most: AtomicUsize,
    pub(crate) asked: AtomicUsize,
    /// Connections that the client broke off while it waited.
    pub(crate) cut: AtomicUsize,
}

impl Service {
    /// On any port.
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, seen, gate) =
            (listener.local_addr().unwrap(), Arc::new(Seen::default()), watch::Sender::new(true));
        let (counts, open) = (seen.clone(), gate.subscribe());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, counts.clone(), open.clone()));
            }
        });
        Self { address, seen, gate, task }
    }

    /// From now on it answers, or lets those who ask wait.
    pub(crate) fn open(&self, open: bool) {
        self.gate.send_replace(open);
    }

    pub(crate) async fn has_inside(&self, count: usize) {
        until("the requests at the service", async || (self.seen.inside.load(Ordering::SeqCst) == count).then_some(()))
            .await;
    }

    /// As `--service` takes it.
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{name}=http://{}", self.address)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Seen>, mut gate: watch::Receiver<bool>) {
    let mut head = Vec::new();
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_buf(&mut head).await {
                Ok(1..) => {}
                _ => return,
            }
        }
        seen.asked.fetch_add(1, Ordering::SeqCst);
        let inside = seen.inside.fetch_add(1, Ordering::SeqCst) + 1;
        seen.inside_most.fetch_max(inside, Ordering::SeqCst);
        let may_answer = tokio::select! {
            open = gate.wait_for(|open| *open) => open.is_ok(),
            _ = stream.read_u8() => false,
        };
        seen.inside.fetch_sub(1, Ordering::SeqCst);
        if !may_answer {
            seen.cut.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.is_err() {
            return;
        }
    }
}
