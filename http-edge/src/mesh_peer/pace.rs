//! Bytes between a peer and a coordinator, at a pace that carries a mesh and is of no use for anything else.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes a second of one connection, both ways together: 64 kbit/s, several times what a coordinator in a mesh of twenty says to a
/// neighbour.
const BYTES_PER_SECOND: f64 = 8_000.0;
/// Bytes of one connection that may pass beyond that: a registry of thousands of nodes, for one who has just come.
const BURST_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
/// A connection on which nothing passes for so long is no live one: libp2p's ends ask each other every few seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes copied at once, each way.
const COPY_BYTES: usize = 16 * 1024;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// One of the two said so.
    ByPeer,
    /// Nothing passed for long.
    Idle,
    /// It broke.
    Broken(io::Error),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPeer => f.write_str("one of the two has closed it"),
            Self::Idle => write!(f, "nothing passed for {} s", IDLE_TIMEOUT.as_secs()),
            Self::Broken(error) => error.fmt(f),
        }
    }
}

/// What one connection may still send, and when it last did: a token bucket that may be overdrawn by one read.
struct Pace {
    tokens: Cell<f64>,
    counted: Cell<Instant>,
    moved: Cell<Instant>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { tokens: Cell::new(BURST_BYTES), counted: Cell::new(now), moved: Cell::new(now) }
    }

    /// So much has passed. How long to wait until more may.
    fn spend(&self, now: Instant, bytes: usize) -> Duration {
        let elapsed = now.duration_since(self.counted.replace(now)).as_secs_f64();
        let tokens = (self.tokens.get() + elapsed * BYTES_PER_SECOND).min(BURST_BYTES) - bytes as f64;
        self.tokens.set(tokens);
        self.moved.set(now);
        Duration::from_secs_f64((-tokens / BYTES_PER_SECOND).max(0.0))
    }

    /// Ready when nothing has passed for long.
    async fn idle(&self) {
        loop {
            let until = self.moved.get() + IDLE_TIMEOUT;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Copies both ways until either side has ended, or nothing passes any more.
pub(super) async fn splice<C, N>(client: C, node: N) -> Ended
where
    C: AsyncRead + AsyncWrite,
    N: AsyncRead + AsyncWrite,
{
    let pace = Pace::new(Instant::now());
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_node, mut to_node) = tokio::io::split(node);
    let ended = tokio::select! {
        // The two ends close a WebSocket by messages of their own: the end of one direction is the end.
        ended = one_way(&mut from_client, &mut to_node, &pace) => ended,
        ended = one_way(&mut from_node, &mut to_client, &pace) => ended,
        () = pace.idle() => return Ended::Idle,
    };
    ended.map_or_else(Ended::Broken, |()| Ended::ByPeer)
}

async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    pace: &Pace,
) -> io::Result<()> {
    let mut buf = vec![0; COPY_BYTES];
    loop {
        let got = from.read(&mut buf).await?;
        if got == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buf[..got]).await?;
        to.flush().await?;
        let pause = pace.spend(Instant::now(), got);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_the_rest_at_the_pace() {
        /// Some ten seconds' worth, of which two can be overdrawn.
        const REST_BYTES: usize = 80 * 1024;
        let (mut client, near) = duplex(COPY_BYTES);
        let (far, mut node) = duplex(COPY_BYTES);
        let splicing = tokio::task::LocalSet::new();
        splicing.spawn_local(splice(near, far));
        let passed = splicing.run_until(async {
            let begin = Instant::now();
            let send = async {
                for _ in 0..(BURST_BYTES as usize + REST_BYTES) / 1024 {
                    client.write_all(&[1; 1024]).await.unwrap();
                }
            };
            let receive = async {
                let mut burst = vec![0; BURST_BYTES as usize];
                node.read_exact(&mut burst).await.unwrap();
                let burst = begin.elapsed();
                let mut rest = vec![0; REST_BYTES];
                node.read_exact(&mut rest).await.unwrap();
                (burst, begin.elapsed())
            };
            tokio::join!(send, receive).1
        });
        let (burst, all) = passed.await;
        assert!(burst < Duration::from_secs(1), "{burst:?}");
        assert!((Duration::from_secs(8)..Duration::from_secs(11)).contains(&all), "{all:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_passes_is_ended_and_one_that_lives_is_not() {
        let (mut client, near) = duplex(64);
        let (far, mut node) = duplex(64);
        let begin = Instant::now();
        let living = async {
            for _ in 0..10 {
                sleep(IDLE_TIMEOUT / 2).await;
                client.write_all(b"ping").await.unwrap();
                node.read_exact(&mut [0; 4]).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = splice(near, far) => assert!(matches!(ended, Ended::Idle), "{ended}"),
            () = living => {}
        }
        assert_eq!(begin.elapsed(), IDLE_TIMEOUT * 6);
    }

    #[tokio::test]
    async fn what_was_said_before_the_end_arrives() {
        let (mut client, near) = duplex(64);
        let (far, mut node) = duplex(64);
        client.write_all(b"the last word").await.unwrap();
        drop(client);
        assert!(matches!(splice(near, far).await, Ended::ByPeer));
        let mut said = Vec::new();
        node.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"the last word");
    }
}
