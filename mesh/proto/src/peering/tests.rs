use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::limits::Limits;
use crate::own::Voice;
use crate::record::{Body, GuestStatus, Roles};
use crate::registry::tests::{FEDERATION, coordinator, guest, id, key, lease, node, say, worker_of};
use crate::replica;

const BLOCKED_FOR: Duration = Duration::from_secs(600);

fn at(elapsed: Duration) -> Time {
    Time::from_origin(Duration::from_secs(1000)) + elapsed
}

fn core(n: u8) -> Core {
    let voice = Voice::new(key(n), FEDERATION, 1, 1, Limits::PRODUCTION);
    Core::new(at(Duration::ZERO), voice, Registry::new(FEDERATION, Limits::PRODUCTION), Duration::ZERO)
}

/// A coordinator, and what its core wants done that nobody has done yet.
struct Node {
    core: Core,
    peering: Peering,
}

impl Node {
    fn new(n: u8, replication: Replication) -> Self {
        let mut core = core(n);
        let Body::Node(mut record) = node(Roles::Coordinator, None) else { unreachable!() };
        record.multiaddrs = vec![format!("/memory/{n}")];
        core.announce(at(Duration::ZERO), record).unwrap();
        Self { core, peering: Peering::new(at(Duration::ZERO), id(n), replication, u64::from(n)) }
    }

    /// One with a neighbour that is a coordinator here; what follows from that has been taken.
    fn with_neighbour(n: u8, neighbour: u8) -> Self {
        let mut node = Self::new(n, Replication::Both);
        for (seq, body) in [(1, coordinator()), (2, lease())] {
            let signed = say(neighbour, 1, seq, &body);
            let taken = node.core.insert_if(
                at(Duration::ZERO),
                signed.bytes().clone(),
                Source::Passed(Duration::ZERO),
                |_, _| Ok::<(), ()>(()),
            );
            assert_eq!(taken, Ok(Outcome::New));
        }
        node.peering.connected(at(Duration::ZERO), &mut node.core, id(neighbour), Part::Coordinator);
        node
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.peering.poll_event()).collect()
    }

    /// The one request that is to be sent.
    fn request(&mut self) -> (RequestId, PeerRequest) {
        let mut requests = self.events().into_iter().filter_map(|event| match event {
            Event::Request { id, request, .. } => Some((id, request)),
            _ => None,
        });
        let request = requests.next().expect("nothing is asked");
        assert_eq!(requests.next(), None);
        request
    }
}

/// Coordinators on a network that loses nothing and takes no time.
struct World {
    now: Time,
    nodes: BTreeMap<NodeId, Node>,
    links: BTreeSet<(NodeId, NodeId)>,
    gossiped: BTreeSet<(NodeId, Bytes)>,
    /// What happened, in order.
    trace: Vec<(NodeId, Event)>,
    /// Nobody reaches anybody.
    cut: bool,
}

impl World {
    /// Each has heard of the first.
    fn new(count: u8, replication: Replication) -> Self {
        let mut nodes: BTreeMap<_, _> = (1..=count).map(|n| (id(n), Node::new(n, replication))).collect();
        let first = nodes[&id(1)].core.introduction();
        for node in nodes.values_mut() {
            for record in &first {
                let passed = Source::Passed(Duration::ZERO);
                node.core.insert_if(at(Duration::ZERO), record.clone(), passed, |_, _| Ok::<(), ()>(())).unwrap();
            }
        }
        let now = at(Duration::ZERO);
        Self { now, nodes, links: BTreeSet::new(), gossiped: BTreeSet::new(), trace: Vec::new(), cut: false }
    }

    /// All connections end, and none comes up.
    fn cut(&mut self) {
        self.cut = true;
        for (one, other) in std::mem::take(&mut self.links) {
            for (one, other) in [(one, other), (other, one)] {
                self.tell(one, |peering, core, now| peering.disconnected(now, core, other));
            }
        }
        self.settle();
    }

    fn linked(&self, one: NodeId, other: NodeId) -> bool {
        self.links.contains(&(one.min(other), one.max(other)))
    }

    fn tell<T>(&mut self, node: NodeId, tell: impl FnOnce(&mut Peering, &mut Core, Time) -> T) -> T {
        let Node { core, peering } = self.nodes.get_mut(&node).unwrap();
        tell(peering, core, self.now)
    }

    fn run(&mut self, lasts: Duration) {
        let until = self.now + lasts;
        loop {
            let wakes = self.nodes.values().flat_map(|node| {
                [Some(node.peering.poll_timeout().0), node.core.poll_timeout().map(|(at, _)| at)].into_iter().flatten()
            });
            match wakes.min().unwrap() {
                next if next > until => break self.now = until,
                next => self.now = next,
            }
            for node in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.tell(node, |peering, core, now| {
                    core.handle_timeout(now, Duration::ZERO);
                    peering.handle_timeout(now, core);
                });
            }
            self.settle();
        }
    }

    /// Does what is to be done until there is nothing more.
    fn settle(&mut self) {
        while let Some((node, event)) = self.next() {
            self.trace.push((node, event.clone()));
            self.follow(node, event);
        }
    }

    fn next(&mut self) -> Option<(NodeId, Event)> {
        for (id, node) in &mut self.nodes {
            while let Some(event) = node.core.poll_event() {
                if let replica::Event::Hurry(record) = event {
                    node.peering.hurry(record);
                }
            }
            if let Some(event) = node.peering.poll_event() {
                return Some((*id, event));
            }
        }
        None
    }

    fn follow(&mut self, from: NodeId, event: Event) {
        match event {
            Event::Dial { node, .. } if self.cut => {
                self.tell(from, |peering, _, now| peering.dial_failed(now, node));
            }
            Event::Dial { node, .. } if !self.linked(from, node) => {
                self.links.insert((from.min(node), from.max(node)));
                for (one, other) in [(from, node), (node, from)] {
                    self.tell(one, |peering, core, now| peering.connected(now, core, other, Part::Coordinator));
                }
            }
            Event::Request { id, to, request } => {
                let reply = self.tell(to, |peering, core, now| peering.requested(now, core, from, request));
                if let Reply::Now(response) = reply {
                    self.tell(from, |peering, core, now| peering.answered(now, core, id, response));
                }
            }
            Event::Publish(record) => self.flood(from, &record),
            _ => {}
        }
    }

    fn flood(&mut self, publisher: NodeId, record: &Bytes) {
        let mut hops = VecDeque::from([publisher]);
        while let Some(hop) = hops.pop_front() {
            for node in self.nodes.keys().copied().collect::<Vec<_>>() {
                if node == publisher || !self.linked(hop, node) || !self.gossiped.insert((node, record.clone())) {
                    continue;
                }
                let taken =
                    self.tell(node, |peering, core, now| peering.gossiped(now, core, hop, publisher, record.clone()));
                if taken == Acceptance::Accept {
                    hops.push_back(node);
                }
            }
        }
    }

    fn agree(&self) -> bool {
        let mut digests = self.nodes.values().map(|node| node.core.registry().digest());
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
    }
}

#[test]
fn coordinators_that_have_heard_of_one_find_all_and_agree_without_gossip() {
    let mut world = World::new(30, Replication::WithoutGossip);
    world.run(Duration::from_secs(15));
    assert!(world.agree());
    for node in world.nodes.values() {
        assert_eq!(node.core.registry().coordinators().count(), 30);
        assert!((8..=29).contains(&node.peering.coordinators().len()));
    }
    assert!(!world.trace.iter().any(|(_, event)| matches!(event, Event::Complaint(..) | Event::Block(_))));
}

#[test]
fn what_is_gossiped_reaches_all_at_once_though_nobody_synchronises() {
    let mut world = World::new(5, Replication::WithoutSync);
    world.run(Duration::from_secs(30));
    let now = world.now;
    world.nodes.get_mut(&id(3)).unwrap().core.say(now, guest("a", GuestStatus::Healthy)).unwrap();
    world.settle();
    assert!(world.nodes.values().all(|node| node.core.registry().claims_of("a").count() == 1));
}

#[test]
fn coordinators_that_were_out_of_reach_until_all_had_lapsed_find_each_other_by_themselves() {
    for hours in [1, 20] {
        let mut world = World::new(3, Replication::Both);
        world.run(Duration::from_secs(10));
        world.cut();
        world.run(Duration::from_secs(hours * 3600));
        assert!(world.nodes.values().all(|node| node.core.registry().coordinator_nodes().count() == 1), "they lapsed");
        let dials = world.trace.iter().filter(|(_, event)| matches!(event, Event::Dial { .. })).count() as u64;
        assert!(dials < 1000 + hours * 3600 / 5, "{dials} in {hours} h");
        world.cut = false;
        world.run(Duration::from_secs(120));
        assert!(world.agree());
        assert!(world.nodes.values().all(|node| node.core.registry().coordinators().count() == 3));
    }
}

#[test]
fn equal_seeds_give_equal_traces_and_others_do_not() {
    let run = |seed: u64| {
        let mut world = World::new(8, Replication::Both);
        for (n, node) in world.nodes.values_mut().enumerate() {
            node.peering = Peering::new(world.now, node.core.node(), Replication::Both, seed + n as u64);
        }
        world.run(Duration::from_secs(10));
        world.trace
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}

#[test]
fn whoever_has_not_said_what_it_is_is_refused_and_only_a_coordinator_passes_calls_on() {
    let mut one = Node::new(1, Replication::Both);
    let call = Call { method: "POST".into(), path: "/heartbeat".into(), body: vec![], hops: 1, take_over: false };
    let ask = |one: &mut Node, request| one.peering.requested(at(Duration::ZERO), &mut one.core, id(2), request);
    let refused = Reply::Now(PeerResponse::Refused);
    for request in [PeerRequest::Push(vec![]), PeerRequest::Guest("a".into()), PeerRequest::Call(call.clone())] {
        assert_eq!(ask(&mut one, request), refused);
    }
    one.peering.connected(at(Duration::ZERO), &mut one.core, id(2), Part::Worker);
    assert_eq!(ask(&mut one, PeerRequest::Guest("a".into())), Reply::Now(PeerResponse::Guest(vec![])));
    assert_eq!(ask(&mut one, PeerRequest::Call(call.clone())), refused);
    assert_eq!(one.events(), [], "nothing is asked of a worker");
    one.peering.connected(at(Duration::ZERO), &mut one.core, id(2), Part::Coordinator);
    assert_eq!(ask(&mut one, PeerRequest::Call(call.clone())), Reply::Call(call));
    let (_, introduction) = one.request();
    assert!(matches!(introduction, PeerRequest::Push(records) if records.len() == 2));
    one.peering.connected(at(Duration::ZERO), &mut one.core, id(2), Part::Coordinator);
    assert_eq!(one.events(), [], "it says so again");
}

#[test]
fn a_synchronisation_ends_however_it_ends_and_another_can_begin() {
    let now = at(Duration::ZERO);
    let ended = [Event::SynchronisationEnded(id(2))];
    let mut one = Node::with_neighbour(1, 2);
    let (introduction, _) = one.request();
    one.peering.answered(now, &mut one.core, introduction, PeerResponse::Taken(2));
    let (turn, _) = one.request();
    assert!(one.peering.synchronise(now, &mut one.core, id(2)), "it is under way");
    assert_eq!(one.events(), []);
    one.peering.unanswered(turn);
    assert_eq!(one.events(), ended);
    for answer in [PeerResponse::Refused, PeerResponse::Sync(vec![b"GET /".to_vec()])] {
        assert!(one.peering.synchronise(now, &mut one.core, id(2)));
        let (turn, _) = one.request();
        one.peering.answered(now, &mut one.core, turn, answer);
        assert!(one.events().ends_with(&ended));
    }
    assert!(one.peering.synchronise(now, &mut one.core, id(2)));
    let (turn, _) = one.request();
    one.peering.disconnected(now, &mut one.core, id(2));
    assert_eq!(one.events(), ended);
    one.peering.answered(now, &mut one.core, turn, PeerResponse::Sync(vec![]));
    one.peering.unanswered(turn);
    assert_eq!(one.events(), [], "what comes after the end of the connection is nothing");
    assert!(!one.peering.synchronise(now, &mut one.core, id(2)), "it is not connected");
}

/// Requests that are to be sent, and to whom.
fn requests(node: &mut Node) -> Vec<(RequestId, NodeId, PeerRequest)> {
    let asked = node.events().into_iter().filter_map(|event| match event {
        Event::Request { id, to, request } => Some((id, to, request)),
        _ => None,
    });
    asked.collect()
}

#[test]
fn records_that_must_not_be_lost_are_held_when_enough_say_so() {
    let now = at(Duration::ZERO);
    let mut one = Node::with_neighbour(1, 2);
    for n in 3..5 {
        one.peering.connected(now, &mut one.core, id(n), Part::Coordinator);
    }
    drop(one.events());
    let hold = |wanted| Question::Hold { records: vec![Bytes::from_static(b"a record")], wanted };
    for (answers, held) in [(vec![1, 1], 2), (vec![1, 0, 1], 2), (vec![0, 0, 1], 1), (vec![0, 0, 0], 0)] {
        let question = one.peering.ask_neighbours(now, hold(2), Duration::from_secs(1));
        let asked = requests(&mut one);
        assert_eq!(asked.len(), 3);
        let last = answers.len() - 1;
        for (n, ((id, ..), taken)) in asked.into_iter().zip(answers).enumerate() {
            one.peering.answered(now, &mut one.core, id, PeerResponse::Taken(taken));
            let over = if n == last { vec![Event::Concluded(question, Conclusion::Held(held))] } else { vec![] };
            assert_eq!(one.events(), over);
        }
    }
}

#[test]
fn whoever_does_not_know_yet_who_asks_is_asked_again_while_there_is_time() {
    let now = at(Duration::ZERO);
    let later = |ms| now + Duration::from_millis(ms);
    let mut one = Node::with_neighbour(1, 2);
    one.peering.connected(now, &mut one.core, id(3), Part::Coordinator);
    drop(one.events());
    let question = one.peering.ask_neighbours(now, Question::Guest("a".into()), Duration::from_secs(2));
    let asked = requests(&mut one);
    for (id, ..) in &asked {
        one.peering.answered(now, &mut one.core, *id, PeerResponse::Refused);
    }
    assert_eq!(one.events(), [], "nobody has said that nothing is known");
    one.peering.disconnected(now, &mut one.core, id(3));
    let again = |one: &mut Node, ms| {
        one.peering.handle_timeout(later(ms), &mut one.core);
        requests(one).into_iter().filter(|(_, _, request)| matches!(request, PeerRequest::Guest(_))).collect::<Vec<_>>()
    };
    let second = again(&mut one, 300);
    assert_eq!(second.iter().map(|(_, to, _)| *to).collect::<Vec<_>>(), [id(2)]);
    one.peering.answered(later(300), &mut one.core, second[0].0, PeerResponse::Refused);
    assert_eq!(again(&mut one, 600), [], "it waits for longer each time");
    let third = again(&mut one, 900);
    let known = vec![(0, vec![1])];
    one.peering.answered(later(900), &mut one.core, third[0].0, PeerResponse::Guest(known.clone()));
    assert!(one.events().contains(&Event::Concluded(question, Conclusion::Guest(known))));
}

#[test]
fn a_question_is_over_with_its_time_with_its_connections_or_with_the_first_that_knows() {
    let now = at(Duration::ZERO);
    let ask = |one: &mut Node| one.peering.ask_neighbours(now, Question::Guest("a".into()), Duration::from_millis(50));
    let unknown = Conclusion::Guest(vec![]);
    let mut alone = Node::new(1, Replication::Both);
    let question = ask(&mut alone);
    assert_eq!(alone.events(), [Event::Concluded(question, unknown.clone())], "there is nobody to ask");

    let mut one = Node::with_neighbour(1, 2);
    one.peering.connected(now, &mut one.core, id(3), Part::Coordinator);
    one.peering.handle_timeout(now, &mut one.core);
    drop(one.events());
    let question = ask(&mut one);
    let asked = requests(&mut one);
    assert_eq!(one.peering.poll_timeout(), (now + Duration::from_millis(50), Wake::Conclude));
    one.peering.answered(now, &mut one.core, asked[0].0, PeerResponse::Guest(vec![]));
    one.peering.handle_timeout(now + Duration::from_millis(50), &mut one.core);
    assert_eq!(one.events(), [Event::Concluded(question, unknown.clone())]);
    let known = PeerResponse::Guest(vec![(0, vec![1])]);
    one.peering.answered(now, &mut one.core, asked[1].0, known.clone());
    assert_eq!(one.events(), [], "it comes too late");

    let question = ask(&mut one);
    let asked = requests(&mut one);
    one.peering.answered(now, &mut one.core, asked[0].0, known);
    assert_eq!(one.events(), [Event::Concluded(question, Conclusion::Guest(vec![(0, vec![1])]))]);

    let question = ask(&mut one);
    let asked = requests(&mut one);
    one.peering.unanswered(asked[0].0);
    one.peering.disconnected(now, &mut one.core, id(3));
    assert!(one.events().contains(&Event::Concluded(question, unknown)));
}

#[test]
fn a_push_of_garbage_is_cut_off_before_its_end_and_forgiven_later() {
    let mut one = Node::with_neighbour(1, 2);
    drop(one.events());
    let garbage = PeerRequest::Push(vec![vec![0]; 100_000]);
    let reply = one.peering.requested(at(Duration::ZERO), &mut one.core, id(2), garbage);
    assert_eq!(reply, Reply::Now(PeerResponse::Taken(0)));
    let events = one.events();
    assert_eq!(events.last(), Some(&Event::Block(id(2))));
    assert!(events.len() < 100, "{}", events.len());
    one.peering.disconnected(at(Duration::ZERO), &mut one.core, id(2));
    one.peering.handle_timeout(at(BLOCKED_FOR - Duration::from_secs(1)), &mut one.core);
    assert!(!one.events().contains(&Event::Unblock(id(2))));
    one.peering.handle_timeout(at(BLOCKED_FOR), &mut one.core);
    assert!(one.events().contains(&Event::Unblock(id(2))));
}

#[test]
fn gossip_is_forwarded_if_it_is_news_and_whoever_forwards_garbage_is_blamed_with_its_publisher() {
    let now = at(Duration::ZERO);
    let mut one = Node::with_neighbour(1, 2);
    drop(one.events());
    let gossip = |one: &mut Node, publisher: u8, record: &Bytes| {
        one.peering.gossiped(now, &mut one.core, id(3), id(publisher), record.clone())
    };
    let news = say(2, 1, 3, &guest("a", GuestStatus::Healthy)).bytes().clone();
    assert_eq!(gossip(&mut one, 2, &news), Acceptance::Accept);
    assert_eq!(gossip(&mut one, 2, &news), Acceptance::Ignore);
    let of_its_worker = say(5, 1, 1, &worker_of(2, 1)).bytes().clone();
    assert_eq!(gossip(&mut one, 2, &of_its_worker), Acceptance::Accept);
    let of_another = say(6, 1, 1, &worker_of(1, 1)).bytes().clone();
    assert_eq!(gossip(&mut one, 2, &of_another), Acceptance::Ignore);
    assert_eq!(one.events(), [Event::Complaint(id(2), Complaint::Objection(Objection::NotItsOwn))]);
    let garbage = Bytes::from_static(b"GET /");
    let mut blocked = BTreeSet::new();
    while blocked.len() < 2 {
        assert_eq!(gossip(&mut one, 2, &garbage), Acceptance::Reject);
        blocked.extend(one.events().into_iter().filter_map(|event| match event {
            Event::Block(node) => Some(node),
            _ => None,
        }));
    }
    assert_eq!(blocked, BTreeSet::from([id(2), id(3)]));
}

#[test]
fn what_the_node_says_is_published_unless_it_does_not_gossip() {
    let record = Bytes::from_static(b"a record");
    for (replication, published) in [(Replication::WithoutSync, 1), (Replication::WithoutGossip, 0)] {
        let mut one = Node::new(1, replication);
        one.peering.hurry(record.clone());
        assert_eq!(one.events().len(), published);
    }
}

#[test]
fn one_that_is_connected_is_met_until_it_goes_or_this_node_stops() {
    let here = |one: &Node| one.core.registry().presence(&id(2)) == crate::registry::Presence::Here;
    let now = at(Duration::ZERO);
    let later = at(Duration::from_secs(61));
    let mut one = Node::with_neighbour(1, 2);
    one.core.handle_timeout(later, Duration::ZERO);
    assert!(here(&one), "its lease has run out, and it is connected");
    one.peering.disconnected(later, &mut one.core, id(2));
    assert!(!here(&one));
    one.peering.connected(now, &mut one.core, id(2), Part::Coordinator);
    assert!(here(&one));
    one.peering.stop(later, &mut one.core);
    assert!(!here(&one));
}

#[test]
fn a_connection_that_is_lost_is_sought_again_at_the_next_look_and_one_that_fails_after_a_while() {
    let mut world = World::new(2, Replication::Both);
    world.run(Duration::from_secs(5));
    let now = world.now;
    let dials = |node: &mut Node, now| {
        node.peering.handle_timeout(now, &mut node.core);
        node.events().into_iter().filter(|event| matches!(event, Event::Dial { node, .. } if *node == id(2))).count()
    };
    let one = world.nodes.get_mut(&id(1)).unwrap();
    assert_eq!(dials(one, now), 0, "it is connected");
    one.peering.disconnected(now, &mut one.core, id(2));
    let next = now + LOOK_INTERVAL;
    assert_eq!(dials(one, next), 1);
    one.peering.dial_failed(next, id(2));
    assert_eq!(dials(one, next), 0);
    assert_eq!(dials(one, next + Duration::from_secs(1)), 1);
    assert_eq!(dials(one, next + Duration::from_secs(9)), 0, "it is being tried");
}

#[test]
fn it_says_when_it_wants_to_be_called_and_why() {
    let mut one = Node::new(1, Replication::Both);
    let mut wakes = BTreeMap::new();
    for _ in 0..100 {
        let (now, wake) = one.peering.poll_timeout();
        one.peering.handle_timeout(now, &mut one.core);
        assert!(one.peering.poll_timeout().0 > now);
        *wakes.entry(format!("{wake:?}")).or_insert(0) += 1;
    }
    assert!(wakes["Look"] > 70 && wakes["Synchronise"] > 10, "{wakes:?}");
}
