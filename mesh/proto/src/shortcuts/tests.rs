use super::*;
use crate::appointment::Unable;

const ENTRY: &str = "198.51.100.1:443";

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// The one with the smaller id, which asks, and the other one.
fn id(n: u8) -> NodeId {
    NodeId([n; 32])
}

fn second(n: u64) -> Time {
    Time::from_origin(Duration::from_secs(n))
}

/// A node whose entry sees it there, where it is asked for it.
struct Node {
    shortcuts: Shortcuts,
    seen_at: Option<SocketAddr>,
    /// How often it was looked.
    looks: usize,
}

impl Node {
    fn new(n: u8, seen_at: Option<&str>) -> Self {
        let mut shortcuts = Shortcuts::new(Time::ORIGIN, id(n), 7);
        shortcuts.observers(Time::ORIGIN, &[at(ENTRY)]);
        Self { shortcuts, seen_at: seen_at.map(at), looks: 0 }
    }

    fn by_entry(&mut self, now: Time, to: u8) {
        self.shortcuts.by_entry(now, id(to), Appoints::Yes, Directly::Untried, &[]);
    }

    /// What it wants done until `now`, with entries that answer at once.
    fn run(&mut self, now: Time) -> Vec<Event> {
        self.shortcuts.handle_timeout(now);
        let mut events = Vec::new();
        while let Some(event) = self.shortcuts.poll_event() {
            match event {
                Event::Look(observer) => {
                    self.looks += 1;
                    self.shortcuts.observed(now, observer, self.seen_at);
                }
                other => events.push(other),
            }
        }
        events
    }
}

/// Both, as they exchange what they have to say; who punches, and as what.
fn exchange(now: Time, one: &mut Node, other: &mut Node) -> Vec<(Side, Vec<SocketAddr>)> {
    let (mut asked, mut punches) = (BTreeMap::new(), Vec::new());
    let mut quiet = 0;
    while quiet < 2 {
        quiet += 1;
        for turn in [true, false] {
            let (from, to) = if turn { (&mut *one, &mut *other) } else { (&mut *other, &mut *one) };
            let me = from.shortcuts.me;
            for event in from.run(now) {
                quiet = 0;
                match event {
                    Event::Ask(node, appointment) => {
                        assert_eq!(node, to.shortcuts.me);
                        asked.insert(turn, ());
                        to.shortcuts.asked(now, me, appointment, ReplyId(u64::from(turn)));
                    }
                    Event::Answer(ReplyId(of), answer) => {
                        assert!(asked.contains_key(&(of == 1)), "nobody asked");
                        to.shortcuts.answered(now, me, Some(answer));
                    }
                    Event::Punch { addresses, side, .. } => punches.push((side, addresses)),
                    Event::Dial(..) => panic!("nobody names addresses"),
                    Event::Look(_) => unreachable!("it was answered"),
                }
            }
        }
    }
    punches
}

#[test]
fn two_that_are_seen_tell_each_other_where_and_both_send_one_as_the_client() {
    let (mut one, mut other) = (Node::new(1, Some("203.0.113.1:4001")), Node::new(2, Some("203.0.113.2:4002")));
    let now = second(1);
    one.by_entry(now, 2);
    other.by_entry(now, 1);
    let punches = exchange(now, &mut one, &mut other);
    let (dials, awaits) = ((Side::Dials, vec![at("203.0.113.2:4002")]), (Side::Awaits, vec![at("203.0.113.1:4001")]));
    assert_eq!(punches.len(), 2);
    assert!(punches.contains(&dials) && punches.contains(&awaits));
    assert_eq!(one.shortcuts.outlook(&id(2)), Some(Outlook::Punching));
    for (node, peer) in [(&mut one, 2), (&mut other, 1)] {
        node.shortcuts.better(id(peer));
        assert_eq!(node.shortcuts.outlook(&id(peer)), None);
        assert_eq!(node.shortcuts.poll_timeout(), None, "nothing is left to be done");
    }
}

#[test]
fn it_is_tried_a_few_times_and_then_only_when_an_address_has_changed() {
    let (mut one, mut other) = (Node::new(1, Some("203.0.113.1:4001")), Node::new(2, Some("203.0.113.2:4002")));
    one.by_entry(second(1), 2);
    other.by_entry(second(1), 1);
    let mut tries = 0;
    let mut hours = |one: &mut Node, other: &mut Node, from: u64| {
        for now in (from..from + 3 * 3600).map(second) {
            if !exchange(now, one, other).is_empty() {
                tries += 1;
                one.shortcuts.not_punched(now, id(2));
                other.shortcuts.not_punched(now, id(1));
            }
            // It comes and goes, as when its entry restarts.
            if now == second(from + 3600) {
                one.shortcuts.gone(id(2));
                one.by_entry(now, 2);
            }
        }
        std::mem::take(&mut tries)
    };
    assert_eq!(hours(&mut one, &mut other, 1), usize::from(PUNCHES_MAX));
    let outlook = one.shortcuts.outlook(&id(2));
    assert_eq!(outlook, Some(Outlook::InVain { times: PUNCHES_MAX, last: Why::Unanswered, rests: true }));
    one.seen_at = Some(at("203.0.113.9:4001"));
    assert_eq!(hours(&mut one, &mut other, 20_000), usize::from(PUNCHES_MAX), "its own has changed");
    other.seen_at = Some(at("203.0.113.10:4001"));
    assert_eq!(hours(&mut one, &mut other, 40_000), usize::from(PUNCHES_MAX), "the other one's has");
    let looked_for = 9 * 3600 / LOOK_INTERVAL.as_secs() as usize;
    assert!(one.looks < looked_for + 50, "{}", one.looks);
}

#[test]
fn where_it_cannot_work_nobody_tries() {
    for (seen_at, unable) in [(None, Unable::NoAddress), (Some(["203.0.113.1:1", "203.0.113.1:2"]), Unable::Symmetric)]
    {
        let mut hopeless = Node::new(3, None);
        let observers = [at(ENTRY), at("198.51.100.2:443")];
        hopeless.shortcuts.observers(second(0), &observers);
        let look = |node: &mut Node, now: Time| {
            let mut left = Vec::new();
            node.shortcuts.handle_timeout(now);
            while let Some(event) = node.shortcuts.poll_event() {
                match event {
                    Event::Look(observer) => {
                        let which = observers.iter().position(|known| *known == observer).unwrap();
                        node.shortcuts.observed(now, observer, seen_at.map(|seen| at(seen[which])));
                    }
                    other => left.push(other),
                }
            }
            left
        };
        // It leads, and does not ask.
        hopeless.by_entry(second(1), 4);
        assert_eq!(look(&mut hopeless, second(1)), []);
        // Another one leads: it is told why not, once.
        let mut asker = Node::new(1, Some("203.0.113.2:4002"));
        asker.by_entry(second(1), 3);
        hopeless.by_entry(second(1), 1);
        let mut asked = 0;
        for now in (1..3600).map(second) {
            for event in asker.run(now) {
                let Event::Ask(_, appointment) = event else { panic!("{event:?}") };
                asked += 1;
                hopeless.shortcuts.asked(now, id(1), appointment, ReplyId(0));
                let answer = Answer::Refused(unable);
                assert_eq!(look(&mut hopeless, now), [Event::Answer(ReplyId(0), answer.clone())]);
                asker.shortcuts.answered(now, id(3), Some(answer));
            }
            assert_eq!(look(&mut hopeless, now), []);
        }
        assert_eq!(asked, 1);
        let outlook = asker.shortcuts.outlook(&id(3));
        assert_eq!(outlook, Some(Outlook::InVain { times: 1, last: Why::Refused(unable), rests: true }));
        assert!(matches!(hopeless.shortcuts.outlook(&id(4)), Some(Outlook::Unseen | Outlook::Symmetric)));
    }
}

#[test]
fn one_that_can_be_seen_at_last_says_so_itself() {
    let (mut one, mut other) = (Node::new(1, Some("203.0.113.1:4001")), Node::new(2, None));
    one.by_entry(second(1), 2);
    other.by_entry(second(1), 1);
    for now in (1..60).map(second) {
        assert_eq!(exchange(now, &mut one, &mut other), []);
    }
    other.seen_at = Some(at("203.0.113.2:4002"));
    let later = (60..600).map(second).find(|now| !exchange(*now, &mut one, &mut other).is_empty());
    assert!(later.is_some(), "it never asked");
}

#[test]
fn a_way_that_was_lost_is_sought_again_soon_and_afresh() {
    let (mut one, mut other) = (Node::new(1, Some("203.0.113.1:4001")), Node::new(2, Some("203.0.113.2:4002")));
    let mut tries = 0;
    for now in (1..100).map(second) {
        if now == second(1) || now == second(50) {
            one.by_entry(now, 2);
            other.by_entry(now, 1);
        }
        if !exchange(now, &mut one, &mut other).is_empty() {
            tries += 1;
            one.shortcuts.better(id(2));
            other.shortcuts.better(id(1));
            assert!((1..5).contains(&now.since(second(if tries == 1 { 0 } else { 50 })).as_secs()), "{now:?}");
        }
        if now == second(49) {
            one.shortcuts.gone(id(2));
            other.shortcuts.gone(id(1));
        }
    }
    assert_eq!(tries, 2);
}

#[test]
fn a_peers_own_addresses_are_dialled_once_and_later_seldom_and_at_once_when_it_names_others() {
    let mut node = Node::new(1, None);
    let named = ["/ip4/192.0.2.1/tcp/1".to_owned()];
    node.shortcuts.by_entry(second(1), id(2), Appoints::No, Directly::Untried, &named);
    let dial = Event::Dial(id(2), named.to_vec());
    assert_eq!(node.run(second(1)).first(), Some(&dial));
    node.shortcuts.not_dialled(second(2), id(2));
    let mut dialled = 0;
    for now in (2..24 * 3600).map(second) {
        for event in node.run(now) {
            assert_eq!(event, dial);
            dialled += 1;
            node.shortcuts.not_dialled(now, id(2));
        }
    }
    assert_eq!(dialled, DIRECT_PAUSES.len());
    let others = ["/ip4/192.0.2.2/tcp/1".to_owned()];
    node.shortcuts.names(second(100_000), id(2), &others);
    assert_eq!(node.run(second(100_000)), [Event::Dial(id(2), others.to_vec())]);
    assert_eq!(node.shortcuts.outlook(&id(2)), Some(Outlook::NotSpoken));
    // One that never says what became of it is no longer waited for.
    assert_eq!(node.run(second(100_000) + ATTEMPT_MAX), []);
    assert!(node.shortcuts.poll_timeout().is_some_and(|at| at > second(100_000) + ATTEMPT_MAX));
    // What has just been tried on the way to the entry is not tried again at once.
    node.shortcuts.by_entry(second(1), id(3), Appoints::No, Directly::InVain, &named);
    assert_eq!(node.run(second(1)), []);
}

#[test]
fn two_that_ask_each_other_at_once_both_punch() {
    let (mut one, mut other) = (Node::new(1, Some("203.0.113.1:4001")), Node::new(2, Some("203.0.113.2:4002")));
    let now = second(1);
    one.by_entry(now, 2);
    other.by_entry(now, 1);
    // The one that follows asks too, as when its own address has changed.
    other.shortcuts.begin(now, id(1));
    let (asks, also_asks) = (one.run(now), other.run(now));
    let [Event::Ask(_, first)] = asks.as_slice() else { panic!("{asks:?}") };
    let [Event::Ask(_, second)] = also_asks.as_slice() else { panic!("{also_asks:?}") };
    other.shortcuts.asked(now, id(1), first.clone(), ReplyId(1));
    one.shortcuts.asked(now, id(2), second.clone(), ReplyId(2));
    let later = now + DIALS_AFTER;
    let punches = |events: Vec<Event>| events.iter().filter(|event| matches!(event, Event::Punch { .. })).count();
    assert_eq!((punches(one.run(later)), punches(other.run(later))), (1, 1));
    one.shortcuts.answered(later, id(2), Some(Answer::Refused(Unable::NotNow)));
    assert_eq!(one.shortcuts.outlook(&id(2)), Some(Outlook::Punching), "its own question does not matter any more");
}

#[test]
fn whoever_asks_again_and_again_is_listened_to_so_often_and_no_more() {
    let mut node = Node::new(2, Some("203.0.113.2:4002"));
    node.by_entry(second(1), 1);
    let mut punched = 0;
    for n in 0..500_u16 {
        let now = second(1) + Duration::from_millis(u64::from(n) * 10);
        let addresses = vec![SocketAddr::from(([203, 0, 113, 1], 1 + n))];
        node.shortcuts.asked(now, id(1), Appointment { addresses }, ReplyId(n.into()));
        let events = node.run(now);
        assert_eq!(
            events.iter().filter(|event| matches!(event, Event::Answer(..))).count(),
            1,
            "each is answered once"
        );
        punched += events.iter().filter(|event| matches!(event, Event::Punch { .. })).count();
        node.shortcuts.not_punched(now, id(1));
    }
    assert_eq!(punched, usize::from(ASKED_MAX));
    // Strangers are not listened to at all.
    let asked = Appointment { addresses: vec![at("203.0.113.1:4001")] };
    node.shortcuts.asked(second(9), id(9), asked, ReplyId(1000));
    assert_eq!(node.run(second(9)), [Event::Answer(ReplyId(1000), Answer::Refused(Unable::NotNow))]);
}

#[test]
fn those_that_have_gone_are_not_remembered_without_bound() {
    let mut node = Node::new(1, None);
    for n in 0..3 * REMEMBERED_MAX as u64 {
        let mut peer = [9; 32];
        peer[..8].copy_from_slice(&n.to_be_bytes());
        node.shortcuts.by_entry(second(1), NodeId(peer), Appoints::Yes, Directly::Untried, &[]);
        node.shortcuts.gone(NodeId(peer));
    }
    assert!(node.shortcuts.peers.len() <= REMEMBERED_MAX);
}
