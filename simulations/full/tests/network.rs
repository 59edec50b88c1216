//! The simulated network behaves as networks do.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene up has failed")]

use std::io::ErrorKind;
use std::time::Duration;

use hedgerow_proto::id::NodeId;
use hedgerow_sim_full::net::{Network, SimLink, Stream, accept_link, address, dial_link};
use hedgerow_sim_full::time;
use hedgerow_sim_model::links::Links;
use hedgerow_sim_model::plan::{Effect, Plan};
use hedgerow_sim_model::scenario::{Scenario, Shape};
use hedgerow_tunnel::link::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PORT: u16 = 80;

/// Runs `scene` over a network of six nodes with this in its scenario.
fn on_network<F: Future<Output = ()>>(text: &str, scene: impl FnOnce(Network) -> F + Send + 'static) {
    let text =
        format!("about = 'x'\nduration = '30m'\n[population]\nentries = 0\ncoordinators = 6\nworkers = 0\n{text}");
    let scenario = Scenario::parse("x", &text).unwrap();
    time::run(7, move || async move {
        let (_, layout) = Plan::draw(&scenario, 7);
        let network = Network::new(Links::new(&scenario, &layout, 7), layout.len());
        tokio::spawn(network.clone().drive());
        scene(network).await;
    })
    .unwrap();
}

/// A connection from one node to another.
async fn connected(network: &Network, from: u32, to: u32) -> (Stream, Stream) {
    let listener = network.listen(to, PORT).unwrap();
    let (dialled, accepted) = tokio::join!(network.dial(from, address::of(to, PORT)), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

/// A link from one node to another.
async fn linked(network: &Network, from: u32, to: u32) -> (SimLink, SimLink) {
    let listener = network.listen(to, PORT).unwrap();
    let accepted = async {
        let (first, address) = listener.accept().await.unwrap();
        accept_link(network, first, NodeId([2; 32]), address).await.unwrap()
    };
    let (dialled, accepted) = tokio::join!(dial_link(network, from, NodeId([1; 32]), address::of(to, PORT)), accepted);
    (dialled.unwrap(), accepted)
}

fn seconds() -> f64 {
    time::now().since_origin().as_secs_f64()
}

fn apart(one: u32) -> Effect {
    Effect::Cut { shape: Shape::One, order: vec![one] }
}

#[test]
fn bytes_arrive_whole_and_in_order_through_losses_and_a_window_that_fills() {
    on_network("[network]\nloss = 0.3\njitter = '50ms'\nuplink-kbit = 0", |network| async move {
        let (mut one, mut other) = connected(&network, 0, 1).await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        let expected = sent.clone();
        let writes = async move {
            for part in sent.chunks(10_000) {
                one.write_all(part).await.unwrap();
                // Each at a moment of its own.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            one.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(other.read_to_end(&mut received), writes);
        read.unwrap();
        assert!(received == expected);
    });
}

#[test]
fn a_partition_holds_bytes_back_until_it_heals() {
    on_network("", |network| async move {
        let (mut one, mut other) = connected(&network, 0, 1).await;
        network.begin(1, &apart(0));
        one.write_all(b"held").await.unwrap();
        let mut word = [0; 4];
        let early = tokio::time::timeout(Duration::from_secs(8), other.read_exact(&mut word)).await;
        assert!(early.is_err(), "nothing gets through");
        network.end(1);
        let healed = seconds();
        other.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"held");
        // Sent again after pauses that double: the outage at most doubles.
        assert!(seconds() - healed < 8.0, "{}", seconds() - healed);
    });
}

#[test]
fn a_connection_that_nothing_gets_through_is_given_up_by_both_ends_and_can_be_dialled_again() {
    on_network("[network]\ngives-up-after = '15s'", |network| async move {
        let (mut one, mut other) = connected(&network, 0, 1).await;
        network.begin(1, &apart(0));
        let began = seconds();
        one.write_all(b"lost").await.unwrap();
        assert_eq!(one.read_u8().await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(other.read_u8().await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!((15.0..40.0).contains(&(seconds() - began)));
        network.end(1);
        drop((one, other));
        let (mut one, mut other) = connected(&network, 0, 1).await;
        one.write_all(b"x").await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn who_is_heard_and_hears_nothing_gives_up_too() {
    on_network("[network]\ngives-up-after = '15s'", |network| async move {
        let (mut one, mut other) = connected(&network, 0, 1).await;
        // What node 1 sends does not arrive, acknowledgements included.
        network.begin(1, &Effect::OneWay { node: 1 });
        one.write_all(b"x").await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), b'x', "this way is open");
        assert_eq!(one.read_u8().await.unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn a_process_that_ends_is_noticed_at_once_and_a_machine_that_ends_is_not() {
    on_network("", |network| async move {
        let (mut one, other) = connected(&network, 0, 1).await;
        let began = seconds();
        drop(other);
        assert_eq!(one.read(&mut [0]).await.unwrap(), 0);
        assert!(seconds() - began < 0.2);

        let (mut one, other) = connected(&network, 0, 1).await;
        network.power_off(1);
        drop(other);
        let silent = tokio::time::timeout(Duration::from_secs(5), one.read(&mut [0])).await;
        assert!(silent.is_err(), "nobody says anything");
        // Its connections mean nothing to the machine when it is there again.
        network.power_on(1);
        one.write_all(b"?").await.unwrap();
        assert_eq!(one.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn who_does_not_listen_refuses_and_who_is_behind_a_nat_is_silent() {
    let nat = "[[nat]]\nshare = 1.0\nmapping = 'endpoint-independent'\nfiltering = 'address-and-port-dependent'";
    on_network("", |network| async move {
        let refused = network.dial(0, address::of(1, PORT)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(seconds() < 1.0);
    });
    on_network(nat, |network| async move {
        let _listens = network.listen(1, PORT).unwrap();
        let silent = network.dial(0, address::of(1, PORT)).await.unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::TimedOut);
        assert!(seconds() > 30.0, "{}", seconds());
        let own = network.dial(1, address::of(1, PORT)).await;
        assert!(own.is_ok(), "its own services are on this side of it");
    });
}

#[test]
fn a_slow_reader_holds_its_writer_up() {
    on_network("[network]\nuplink-kbit = 0", |network| async move {
        let (mut one, mut other) = connected(&network, 0, 1).await;
        let part = vec![0; 64 * 1024];
        let mut written = 0;
        while let Ok(count) = tokio::time::timeout(Duration::from_secs(1), one.write(&part)).await {
            written += count.unwrap();
            assert!(written <= 1 << 20, "there is no end of it");
        }
        let mut read = vec![0; written];
        other.read_exact(&mut read).await.unwrap();
        let again = tokio::time::timeout(Duration::from_secs(1), one.write(&part)).await;
        assert!(again.is_ok(), "there is room again");
    });
}

#[test]
fn a_stream_that_is_let_go_of_after_its_last_word_is_heard_to_its_end_and_takes_no_more() {
    on_network("", |network| async move {
        let (one, other) = linked(&network, 0, 1).await;
        let (mut asks, mut said) = (one.open().await.unwrap(), [0; 5]);
        asks.write_all(b"asked").await.unwrap();
        let mut answers = other.accept().await.unwrap();
        answers.read_exact(&mut said).await.unwrap();
        answers.write_all(b"the last word").await.unwrap();
        answers.shutdown().await.unwrap();
        drop(answers);
        // It is told that nobody reads what it says, and by then all has arrived.
        std::future::poll_fn(|cx| asks.poll_stopped(cx)).await;
        assert!(asks.write_all(b"more").await.is_err());
        let mut heard = Vec::new();
        asks.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"the last word");
    });
}
