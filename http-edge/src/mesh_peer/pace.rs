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

/// What may still pass: a token bucket that may be overdrawn by one read each way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A whole burst.
    pub(super) fn full(now: Instant) -> Self {
        Self { tokens: BURST_BYTES, at: now }
    }

    /// How much is in it by now.
    pub(super) fn tokens(&self, now: Instant) -> f64 {
        (self.tokens + now.duration_since(self.at).as_secs_f64() * BYTES_PER_SECOND).min(BURST_BYTES)
    }

    /// Whether all that was taken has come back.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.tokens(now) >= BURST_BYTES
    }

    pub(super) fn spend(&mut self, now: Instant, bytes: usize) {
        *self = Self { tokens: self.tokens(now) - bytes as f64, at: now };
    }
}

/// What one connection may still send, and when it last did.
struct Pace {
    bucket: Cell<Bucket>,
    moved: Cell<Instant>,
}

impl Pace {
    fn new(now: Instant, bucket: Bucket) -> Self {
        Self { bucket: Cell::new(bucket), moved: Cell::new(now) }
    }

    /// So much has come to be passed on.
    fn spend(&self, now: Instant, bytes: usize) {
        let mut bucket = self.bucket.get();
        bucket.spend(now, bytes);
        self.bucket.set(bucket);
        self.moved.set(now);
    }

    /// How long to wait until more may pass.
    fn pause(&self, now: Instant) -> Duration {
        Duration::from_secs_f64((-self.bucket.get().tokens(now) / BYTES_PER_SECOND).max(0.0))
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

/// Copies both ways until either side has ended, or nothing passes any more. What is left in the bucket is left there.
pub(super) async fn splice<C, N>(client: C, node: N, bucket: &mut Bucket) -> Ended
where
    C: AsyncRead + AsyncWrite,
    N: AsyncRead + AsyncWrite,
{
    let pace = Pace::new(Instant::now(), *bucket);
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_node, mut to_node) = tokio::io::split(node);
    let ended = tokio::select! {
        // The two ends close a WebSocket by messages of their own: the end of one direction is the end.
        ended = one_way(&mut from_client, &mut to_node, &pace) => ended.map_err(Some),
        ended = one_way(&mut from_node, &mut to_client, &pace) => ended.map_err(Some),
        () = pace.idle() => Err(None),
    };
    *bucket = pace.bucket.get();
    match ended {
        Ok(()) => Ended::ByPeer,
        Err(Some(error)) => Ended::Broken(error),
        Err(None) => Ended::Idle,
    }
}

async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    pace: &Pace,
) -> io::Result<()> {
    let mut buf = vec![0; COPY_BYTES];
    loop {
        // At the beginning too: whoever hangs up and comes again finds the bucket overdrawn.
        let pause = pace.pause(Instant::now());
        if !pause.is_zero() {
            sleep(pause).await;
        }
        let got = from.read(&mut buf).await?;
        if got == 0 {
            return to.shutdown().await;
        }
        pace.spend(Instant::now(), got);
        to.write_all(&buf[..got]).await?;
        to.flush().await?;
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
        splicing.spawn_local(async move { splice(near, far, &mut Bucket::full(Instant::now())).await });
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
    async fn whoever_comes_again_with_an_overdrawn_bucket_waits_before_the_first_byte() {
        let (mut client, near) = duplex(COPY_BYTES);
        let (far, mut node) = duplex(COPY_BYTES);
        let begin = Instant::now();
        let mut bucket = Bucket::full(begin);
        bucket.spend(begin, BURST_BYTES as usize + 2 * BYTES_PER_SECOND as usize);
        client.write_all(b"!").await.unwrap();
        tokio::select! {
            ended = splice(near, far, &mut bucket) => panic!("{ended}"),
            got = node.read_u8() => assert_eq!(got.unwrap(), b'!'),
        }
        assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_passes_is_ended_and_one_that_lives_is_not() {
        let (mut client, near) = duplex(64);
        let (far, mut node) = duplex(64);
        let begin = Instant::now();
        let mut bucket = Bucket::full(begin);
        let living = async {
            for _ in 0..10 {
                sleep(IDLE_TIMEOUT / 2).await;
                client.write_all(b"ping").await.unwrap();
                node.read_exact(&mut [0; 4]).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = splice(near, far, &mut bucket) => assert!(matches!(ended, Ended::Idle), "{ended}"),
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
        let (mut bucket, now) = (Bucket::full(Instant::now()), Instant::now());
        assert!(matches!(splice(near, far, &mut bucket).await, Ended::ByPeer));
        assert!(bucket.tokens(now) < BURST_BYTES, "what has passed is counted");
        let mut said = Vec::new();
        node.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"the last word");
    }
}
