use std::sync::atomic::{AtomicU64, Ordering};

use hedgerow_proto::key::SecretKey;
use hedgerow_proto::record::{Attachment, AttachmentState, Roles};
use hedgerow_proto::registry::Presence;

use super::*;

const FEDERATION: FederationId = FederationId([0xfe; 32]);

/// A clock that the test turns.
#[derive(Default)]
struct TestClock {
    now_s: AtomicU64,
    suspended_s: AtomicU64,
}

impl TestClock {
    fn advance(&self, seconds: u64) {
        self.now_s.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time::from_origin(Duration::from_secs(1000 + self.now_s.load(Ordering::Relaxed)))
    }
    fn suspended(&self) -> Duration {
        Duration::from_secs(self.suspended_s.load(Ordering::Relaxed))
    }
}

struct World {
    clock: Arc<TestClock>,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { clock: Arc::default(), directory: tempfile::tempdir().unwrap() }
    }

    fn data_dir(&self, name: &str) -> Arc<DataDir> {
        Arc::new(DataDir::open(&self.directory.path().join(name)).unwrap())
    }

    fn open(&self, data_dir: &Arc<DataDir>, incarnation: u64) -> Replica {
        Replica::open(ReplicaConfig {
            data_dir: data_dir.clone(),
            federation: FEDERATION,
            limits: Limits::PRODUCTION,
            incarnation,
            clock: self.clock.clone(),
        })
        .unwrap()
    }

    fn node(&self, name: &str) -> Replica {
        self.open(&self.data_dir(name), 1)
    }
}

fn node_record(roles: Roles) -> NodeRecord {
    NodeRecord {
        roles,
        location: "here".into(),
        version: "0.1.0".into(),
        services: vec![],
        multiaddrs: vec![],
        home: None,
        candidacy: Default::default(),
        hardware: Default::default(),
    }
}

async fn sync(one: &Replica, two: &Replica) {
    let (mut a, mut b) = tokio::io::duplex(4096);
    let (first, second) =
        tokio::join!(one.sync_over(&mut a, Session::initiate()), two.sync_over(&mut b, Session::respond()));
    first.unwrap();
    second.unwrap();
}

#[tokio::test]
async fn two_replicas_are_equal_after_a_synchronisation() {
    let world = World::new();
    let (one, two) = (world.node("one"), world.node("two"));
    one.announce(node_record(Roles::Coordinator)).unwrap();
    two.announce(node_record(Roles::Worker)).unwrap();
    let mut changes = two.changes();
    changes.mark_unchanged();
    sync(&one, &two).await;
    assert!(changes.has_changed().unwrap());
    assert_eq!(one.read(Registry::digest), two.read(Registry::digest));
    assert_eq!(two.read(|registry| registry.coordinators().count()), 1);
    assert_eq!(one.read(|registry| registry.workers().count()), 1);
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_ends_the_session_and_nothing_else() {
    use tokio::io::AsyncWriteExt;
    let world = World::new();
    let one = world.node("one");
    let (mut a, mut b) = tokio::io::duplex(4096);
    b.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(matches!(one.sync_over(&mut a, Session::respond()).await, Err(SyncBroken::Frame(_))));
    let (mut a, b) = tokio::io::duplex(4096);
    drop(b);
    assert!(matches!(one.sync_over(&mut a, Session::respond()).await, Err(SyncBroken::Stream(_))));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_given_up() {
    let world = World::new();
    let one = world.node("one");
    let (mut a, _b) = tokio::io::duplex(4096);
    let error = one.sync_over(&mut a, Session::respond()).await.unwrap_err();
    assert!(matches!(&error, SyncBroken::Stream(error) if error.kind() == std::io::ErrorKind::TimedOut), "{error}");
}

#[tokio::test]
async fn what_is_due_is_done_and_the_next_time_is_said() {
    let world = World::new();
    let one = world.node("one");
    one.announce(node_record(Roles::Coordinator)).unwrap();
    let before = one.read(Registry::digest);
    world.clock.advance(20);
    let (now, wake) = one.look();
    assert_ne!(one.read(Registry::digest), before, "the lease is renewed");
    assert_eq!(wake, Some(now + Duration::from_secs(20)));
}

#[tokio::test]
async fn what_a_node_says_is_published_as_signed_bytes() {
    let world = World::new();
    let one = world.node("one");
    let mut record = one.record();
    assert!(record.borrow_and_update().is_empty());
    one.announce(node_record(Roles::Worker)).unwrap();
    let bytes = record.borrow_and_update().clone();
    let opened = Signed::open(bytes, FEDERATION, &Limits::PRODUCTION).unwrap();
    assert_eq!(opened.record().node(), Some(&node_record(Roles::Worker)));
    let left = one.leave().unwrap();
    let left = Signed::open(left, FEDERATION, &Limits::PRODUCTION).unwrap();
    assert_eq!(left.record().body, Body::Leave);
    assert!(left.version() > opened.version());
    assert_eq!(one.read(|registry| registry.nodes().count()), 0);
}

#[tokio::test]
async fn a_replica_comes_back_from_disk_and_a_damaged_one_comes_back_empty() {
    let world = World::new();
    let data_dir = world.data_dir("one");
    let other = world.node("two");
    other.announce(node_record(Roles::Coordinator)).unwrap();
    let one = world.open(&data_dir, 1);
    one.announce(node_record(Roles::Worker)).unwrap();
    sync(&one, &other).await;
    one.store().await;
    let digest = one.read(Registry::digest);
    let again = world.open(&data_dir, 2);
    assert_eq!(again.read(Registry::digest), digest);
    assert_eq!(again.read(|registry| registry.presence(&other.node())), Presence::Provisional);
    let file = std::fs::read_dir(data_dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("registry-"))
        .unwrap();
    std::fs::write(&file, &std::fs::read(&file).unwrap()[1..]).unwrap();
    let empty = world.open(&data_dir, 3);
    assert!(empty.read(Registry::is_empty));
    assert!(!file.exists());
}

#[tokio::test]
async fn a_node_that_lost_its_disk_speaks_above_what_it_said_before() {
    let world = World::new();
    let data_dir = world.data_dir("one");
    let other = world.node("two");
    let before = world.open(&data_dir, 1);
    for _ in 0..5 {
        before.announce(node_record(Roles::Coordinator)).unwrap();
    }
    sync(&before, &other).await;
    // The epoch goes with the disk; the key came back from a backup.
    std::fs::remove_file(data_dir.path().join("epoch")).unwrap();
    drop((before, data_dir));
    let data_dir = world.data_dir("one");
    let after = world.open(&data_dir, 2);
    after.announce(NodeRecord { location: "there".into(), ..node_record(Roles::Coordinator) }).unwrap();
    sync(&after, &other).await;
    // It met what it said before, and now says what it has to say above that.
    sync(&after, &other).await;
    let location = |replica: &Replica| {
        replica.read(|registry| registry.node(&after.node()).unwrap().node().unwrap().location.clone())
    };
    assert_eq!((location(&after).as_str(), location(&other).as_str()), ("there", "there"));
    assert_eq!(after.read(Registry::digest), other.read(Registry::digest));
    assert_eq!(data_dir.raise_epoch().unwrap(), 3);
}

#[tokio::test]
async fn a_node_that_lost_its_epoch_and_not_its_snapshot_speaks_above_what_it_said_with_nobody_to_tell_it() {
    let world = World::new();
    let data_dir = world.data_dir("one");
    let before = world.open(&data_dir, 1);
    before.announce(node_record(Roles::Coordinator)).unwrap();
    before.store().await;
    std::fs::remove_file(data_dir.path().join("epoch")).unwrap();
    drop((before, data_dir));
    let after = world.open(&world.data_dir("one"), 2);
    after.announce(NodeRecord { location: "there".into(), ..node_record(Roles::Coordinator) }).unwrap();
    let location = after.read(|registry| registry.node(&after.node()).unwrap().node().unwrap().location.clone());
    assert_eq!((location.as_str(), after.epoch()), ("there", 2));
}

#[tokio::test]
async fn a_disk_that_takes_nothing_stops_nothing_and_is_tried_again() {
    let world = World::new();
    let data_dir = world.data_dir("one");
    let (one, other) = (world.open(&data_dir, 1), world.node("two"));
    one.announce(node_record(Roles::Coordinator)).unwrap();
    // Nothing can be renamed over a directory that holds something.
    let in_the_way: Vec<_> =
        ["epoch", "registry-fefefefefefefefe"].into_iter().map(|name| data_dir.path().join(name)).collect();
    std::fs::remove_file(&in_the_way[0]).unwrap();
    in_the_way.iter().for_each(|path| std::fs::create_dir_all(path.join("x")).unwrap());
    one.store().await;
    // An earlier word of the same node, which it has to speak above.
    let mut voice = Voice::new(data_dir.key().clone(), FEDERATION, 7, 40, Limits::PRODUCTION);
    let earlier = voice.sign(&Body::Node(node_record(Roles::Worker))).unwrap();
    one.insert(earlier.bytes().clone(), Source::Passed(Duration::ZERO)).unwrap();
    assert_eq!(one.epoch(), 41);
    sync(&one, &other).await;
    assert_eq!(one.read(Registry::digest), other.read(Registry::digest));
    in_the_way.iter().for_each(|path| std::fs::remove_dir_all(path).unwrap());
    one.store().await;
    let digest = one.read(Registry::digest);
    drop((one, data_dir));
    let after = world.node("one");
    assert_eq!((after.read(Registry::digest), after.epoch()), (digest, 42));
}

#[tokio::test]
async fn what_was_said_before_a_lost_disk_keeps_no_place_though_more_was_said_since() {
    let world = World::new();
    let data_dir = world.data_dir("one");
    let other = world.node("two");
    let before = world.open(&data_dir, 1);
    before.announce(node_record(Roles::Coordinator)).unwrap();
    before.announce(node_record(Roles::Coordinator)).unwrap();
    sync(&before, &other).await;
    std::fs::remove_file(data_dir.path().join("epoch")).unwrap();
    drop((before, data_dir));
    let after = world.open(&world.data_dir("one"), 2);
    let there = NodeRecord { location: "there".into(), ..node_record(Roles::Coordinator) };
    after.announce(there).unwrap();
    // Other places take it above the one that its record of itself had before, and leave that one where it is.
    let worker = SecretKey::from_seed([9; 32]).id();
    for home_seq in 1..9 {
        let state = AttachmentState::Attached;
        after.say(Body::Attachment(Attachment { worker, home_seq, state })).unwrap();
    }
    sync(&after, &other).await;
    sync(&after, &other).await;
    let location = |replica: &Replica| {
        replica.read(|registry| registry.node(&after.node()).unwrap().node().unwrap().location.clone())
    };
    assert_eq!((location(&after).as_str(), location(&other).as_str()), ("there", "there"));
}

#[tokio::test]
async fn a_key_in_use_elsewhere_stops_the_node_with_words() {
    let world = World::new();
    let data_dir = world.data_dir("one");
    let (one, two) = (world.open(&data_dir, 1), world.open(&data_dir, 2));
    for replica in [&one, &two] {
        replica.announce(node_record(Roles::Worker)).unwrap();
    }
    let failure = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(
            async {
                for _ in 0..10 {
                    sync(&one, &two).await;
                }
            },
            async {
                tokio::select! {
                    failure = one.failed() => failure,
                    failure = two.failed() => failure,
                }
            }
        )
        .1
    })
    .await
    .unwrap();
    assert!(matches!(&*failure, ReplicaError::Speak(SpeakError::KeyInUse(_))));
    assert!(failure.to_string().contains("in use elsewhere"), "{failure}");
}

#[tokio::test]
async fn after_a_suspend_nobody_is_dead() {
    let world = World::new();
    let (one, two) = (world.node("one"), world.node("two"));
    one.announce(node_record(Roles::Coordinator)).unwrap();
    sync(&one, &two).await;
    world.clock.advance(3600);
    world.clock.suspended_s.store(3600, Ordering::Relaxed);
    two.look();
    assert_eq!(two.read(|registry| registry.presence(&one.node())), Presence::Provisional);
    world.clock.advance(60);
    two.look();
    assert_eq!(two.read(|registry| registry.presence(&one.node())), Presence::Absent);
}

#[tokio::test]
async fn a_running_replica_is_on_disk_when_it_stops() {
    let world = World::new();
    let data_dir = world.data_dir("one");
    let one = world.open(&data_dir, 1);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn({
        let one = one.clone();
        async move {
            one.run(async {
                let _ = stopped.await;
            })
            .await;
        }
    });
    one.announce(node_record(Roles::Coordinator)).unwrap();
    stop.send(()).unwrap();
    running.await.unwrap();
    assert_eq!(world.open(&data_dir, 2).read(Registry::digest), one.read(Registry::digest));
}

#[test]
fn the_system_clock_runs() {
    use crate::clock::SystemClock;
    let before = SystemClock.now();
    while SystemClock.now() == before {
        std::hint::spin_loop();
    }
    assert!(SystemClock.suspended() < SystemClock.now().since_origin() + Duration::from_secs(1));
}
