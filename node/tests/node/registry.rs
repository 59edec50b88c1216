//! The registry that a coordinator keeps: an entry synchronises with it down the tunnel.

use std::sync::Mutex;
use std::time::Duration;

use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{
    FrameHeader, FrameType, HEADER_BYTES, Preface, Refusal, ServiceConnection, StreamKind, WhenFull, message,
};
use hedgerow_proto::id::RequestId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::Voice;
use hedgerow_proto::record::{Body, NodeRecord, Roles};
use hedgerow_proto::registry::{Registry, Source};
use hedgerow_proto::sync::{Session, SyncError};
use hedgerow_proto::wire;
use hedgerow_tunnel::BoxStream;
use hedgerow_tunnel::sync::{SyncReplica, synchronise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::entry::{Entry, Joined};
use crate::process::{Home, in_time, until};
use crate::service::Service;

/// The entry's replica.
struct Replica(Mutex<Registry>);

const NOW: Time = Time::from_origin(Duration::from_secs(1));

impl SyncReplica for Replica {
    fn transmit(&self, session: &mut Session) -> Option<Vec<u8>> {
        session.poll_transmit(NOW, &self.0.lock().unwrap())
    }

    fn receive(&self, session: &mut Session, message: &[u8]) -> Result<(), SyncError> {
        session.handle(NOW, &mut self.0.lock().unwrap(), message).map(drop)
    }
}

/// Opens a stream for synchronisation; the node's verdict comes with it.
async fn ask_for_sync(joined: &Joined) -> (BoxStream, Result<(), Refusal>) {
    let mut stream = joined.tunnel.open().await.unwrap();
    let preface = Preface {
        kind: StreamKind::Sync,
        node: None,
        service: None,
        request: RequestId(1),
        hops: 0,
        connection: ServiceConnection::Fresh,
        when_full: WhenFull::Refuse,
    };
    stream.write_all(&message(FrameType::Open, &preface)).await.unwrap();
    stream.flush().await.unwrap();
    let mut header = [0; HEADER_BYTES];
    in_time("a verdict", stream.read_exact(&mut header)).await.unwrap();
    let header = FrameHeader::decode(header).unwrap();
    let mut payload = vec![0; header.payload_bytes];
    stream.read_exact(&mut payload).await.unwrap();
    let verdict = match header.frame_type {
        FrameType::Accept => Ok(()),
        FrameType::Refuse => Err(wire::decode(&payload, payload.len()).unwrap()),
        other => panic!("{other:?} is no verdict"),
    };
    (stream, verdict)
}

#[tokio::test]
async fn a_coordinator_and_an_entry_know_the_same_after_they_have_synchronised() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let _node = home.start(&["join", &entry.url(), "--listen", "127.0.0.1:0"]);
    let joined = entry.joined().await;

    let federation = entry.identity.federation;
    let mut registry = Registry::new(federation, Limits::PRODUCTION);
    let worker = NodeRecord {
        roles: Roles::Worker,
        location: "elsewhere".into(),
        version: "1".into(),
        services: vec![],
        multiaddrs: vec![],
        home: None,
        candidacy: Default::default(),
        hardware: Default::default(),
    };
    let key = SecretKey::from_seed([77; 32]);
    let said = Voice::new(key.clone(), federation, 1, 1, Limits::PRODUCTION).sign(&Body::Node(worker)).unwrap();
    registry.insert(NOW, said, Source::Direct(None)).unwrap();
    let replica = Replica(Mutex::new(registry));

    let listen = home.status().await.listen.unwrap();
    // Again and again: it says anew what it is when it has learnt where it can be reached.
    until("the same digest", async || {
        let (mut stream, verdict) = ask_for_sync(&joined).await;
        assert_eq!(verdict, Ok(()));
        in_time("the synchronisation", synchronise(&mut stream, Session::initiate(), &replica)).await.unwrap();
        let digest = {
            let registry = replica.0.lock().unwrap();
            assert!(registry.node(&joined.tunnel.node()).is_some(), "it knows at least itself");
            registry.digest().to_string()
        };
        let mut client = tokio::net::TcpStream::connect(&listen).await.unwrap();
        client.write_all(b"GET /mesh/registry HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        let knows_worker = body["workers"][0]["node_id"] == key.id().to_string();
        (body["digest"] == digest && knows_worker).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_keeps_no_registry_for_others() {
    let home = Home::new();
    let (mut entry, service) = (Entry::start(1).await, Service::start().await);
    let _node = home.start(&["join", &entry.url(), "--service", &service.named("notes")]);
    let joined = entry.joined().await;
    assert_eq!(ask_for_sync(&joined).await.1, Err(Refusal::Unsupported));
}
