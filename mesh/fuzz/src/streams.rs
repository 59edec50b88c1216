//! What `hedgerow-tunnel` reads from a stream: a node's end and an entry's end of an exchange, and both ends of a control stream.

use std::cell::LazyCell;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::frame::{Hello, Preface, Refusal, ServiceConnection, StreamKind, WhenFull};
use hedgerow_proto::id::{FederationId, NodeId, RequestId, ServiceName};
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::{
    BoxIo, BoxStream, DialConfig, DrainState, Link, Open, OpenService, Services, Slot, TunnelEvent, exchange, memory,
    serve_over, welcome,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const FEDERATION: FederationId = FederationId([0xfe; 32]);
/// Longer than anything waits, in a time that does not pass.
const LONG: Duration = Duration::from_secs(3600);

thread_local! {
    static RUNTIME: LazyCell<Runtime> = const {
        LazyCell::new(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().start_paused(true).build().expect("a runtime")
        })
    };
}

/// Bytes of a peer that keeps no rule. The first byte says at which end, the second how long the pieces are in which they come.
pub fn streams(bytes: &[u8]) {
    let [which, piece, rest @ ..] = bytes else { return };
    let (which, pieces) = (which % 4, Pieces { bytes: rest.to_vec(), length: usize::from(*piece) + 1 });
    RUNTIME.with(|runtime| {
        let talk = async {
            match which {
                0 => nodes_end(pieces).await,
                1 => entrys_end(pieces).await,
                2 => entrys_control(pieces).await,
                _ => nodes_control(pieces).await,
            }
        };
        // Made within the runtime, whose time it is.
        let ended = runtime.block_on(async { timeout(LONG, talk).await });
        ended.expect("whatever was said, it ends");
    });
}

struct Pieces {
    bytes: Vec<u8>,
    length: usize,
}

impl Pieces {
    /// Says all of it, reads whatever comes back, and hangs up.
    async fn say(self, stream: BoxStream) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let says = async {
            for piece in self.bytes.chunks(self.length) {
                if writer.write_all(piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            let _ = writer.shutdown().await;
        };
        let hears = async {
            let mut heard = [0; 1024];
            while let Ok(1..) = reader.read(&mut heard).await {}
        };
        tokio::join!(says, hears);
    }
}

fn link() -> (memory::MemoryLink, memory::MemoryLink) {
    memory::pair(NodeId([1; 32]), NodeId([2; 32]))
}

async fn nodes_end(pieces: Pieces) {
    let (entry, node) = link();
    let drain = watch::Sender::new(DrainState::Running);
    let serving = hedgerow_tunnel::serve_link(Arc::new(node), Arc::new(Echo), drain.subscribe(), Arc::default());
    let asking = async {
        let stream = entry.open().await.expect("a stream");
        pieces.say(stream).await;
        entry.close(1, "all was said");
    };
    tokio::join!(serving, asking);
}

async fn entrys_end(pieces: Pieces) {
    let (entry, node) = link();
    let answering = async {
        let stream = node.accept().await.expect("a stream");
        pieces.say(stream).await;
    };
    let asking = async {
        let (mut io, handle) = exchange(entry.open().await.expect("a stream"));
        handle.begin(&preface());
        let _ = io.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        let _ = io.shutdown().await;
        let mut answer = [0; 256];
        while let Ok(1..) = io.read(&mut answer).await {}
        let _ = (handle.verdict_now(), handle.answer_began(), handle.breakage());
    };
    tokio::join!(answering, asking);
}

async fn entrys_control(pieces: Pieces) {
    let (entry, node) = link();
    let saying = async {
        if let Ok(stream) = node.accept().await {
            pieces.say(stream).await;
        }
        node.close(1, "all was said");
    };
    let welcoming = async {
        let hello = Hello { federation: FEDERATION, incarnation: 1, shard: 0, shards: 1 };
        let entry: Arc<dyn Link> = Arc::new(entry);
        if let Ok((_, mut events, ..)) = welcome(entry, hello, &Limits::TINY, &Open).await {
            while !matches!(events.next().await, TunnelEvent::Closed(_)) {}
        }
    };
    tokio::join!(saying, welcoming);
}

async fn nodes_control(pieces: Pieces) {
    let (entry, node) = link();
    let saying = async {
        if let Ok(stream) = entry.open().await {
            pieces.say(stream).await;
        }
        entry.close(1, "all was said");
    };
    let serving = async {
        let (config, _held) = config();
        let _ = serve_over(&config, FEDERATION, Arc::new(node), |_| {}).await;
    };
    tokio::join!(saying, serving);
}

/// A node's settings, and the other ends of its channels.
fn config() -> (DialConfig, impl Sized) {
    let record = watch::Sender::new(Bytes::from_static(b"a record"));
    let drain = watch::Sender::new(DrainState::Running);
    let (coordinators, coordinators_end) = mpsc::channel(1);
    let (newer, newer_end) = mpsc::channel(1);
    let config = DialConfig {
        key: SecretKey::from_seed([2; 32]),
        incarnation: 1,
        services: Arc::new(Echo),
        authorities: Vec::new(),
        record: record.subscribe(),
        leave: Arc::new(OnceLock::new()),
        drain: drain.subscribe(),
        coordinators,
        census: watch::Sender::new(None),
        newer,
        pong_timeout: hedgerow_tunnel::tuning::PONG_TIMEOUT,
        lanes_max: 1,
        seed: 1,
    };
    (config, (record, drain, coordinators_end, newer_end))
}

fn preface() -> Preface {
    Preface {
        kind: StreamKind::Http,
        node: None,
        service: ServiceName::new("echo").ok(),
        request: RequestId(7),
        hops: 0,
        connection: ServiceConnection::MayReuse,
        when_full: WhenFull::Refuse,
    }
}

/// Says back what it hears.
struct Echo;

struct Free;

impl Slot for Free {
    fn keep(self: Box<Self>, _: BoxIo) {}
}

impl Services for Echo {
    fn open<'a>(&'a self, _: &'a Preface) -> BoxFuture<'a, Result<OpenService, Refusal>> {
        Box::pin(async {
            let (near, mut far) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let mut heard = [0; 64];
                while let Ok(got @ 1..) = far.read(&mut heard).await {
                    if far.write_all(&heard[..got]).await.is_err() {
                        return;
                    }
                }
            });
            Ok(OpenService { io: Box::new(near), reused: false, slot: Box::new(Free) })
        })
    }
}
