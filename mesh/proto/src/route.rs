//! Where a request goes: the route that its path names, and which of the nodes that offer the service takes it.
//!
//! Pure: what is known of a node's load comes in as a [`Contender`], and the choice goes out as a [`Pick`]. Sending
//! the request there is the caller's; so is the list of who offers what.

use std::time::Duration;

use crate::id::{NodeId, ServiceName};

/// Whom a request is for. Borrows from the request's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// Any node that may answer for the service: `/service/{name}/…` and `/api/service/{name}/…`.
    Service {
        /// A valid [`ServiceName`], or an alias of one.
        service: &'a str,
    },
    /// The service of one node: `/service/~{node-id}/{name}/…`.
    Node {
        /// The node.
        node: NodeId,
        /// A valid [`ServiceName`], or an alias of one.
        service: &'a str,
    },
    /// The service of one worker, by the name that it registered under: `/worker/{id}/{service}/…`.
    Worker {
        /// 1 to [`WORKER_ID_BYTES_MAX`] bytes that need no escaping in a URL.
        worker: &'a str,
        /// A valid [`ServiceName`], or an alias of one.
        service: &'a str,
    },
}

impl<'a> Target<'a> {
    /// The name of the service that is asked for, valid as a [`ServiceName`].
    pub fn service(&self) -> &'a str {
        match *self {
            Self::Service { service } | Self::Node { service, .. } | Self::Worker { service, .. } => service,
        }
    }
}

/// A path, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    /// Whom it is for.
    pub target: Target<'a>,
    /// What the service does not see of the path, for `X-Forwarded-Prefix`: begins with `/`, does not end with it.
    pub prefix: &'a str,
    /// What the service does see, byte for byte: begins with `/`.
    pub rest: &'a str,
}

/// Why a path that names a service names none that can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No name, or one that no service can have.
    #[error(
        "the path names no service: a service name is 1 to {} characters of a-z, A-Z, 0-9, '-', '_' and '.', unescaped, \
         and begins with a letter or a digit",
        ServiceName::BYTES_MAX
    )]
    Service,
    /// Behind `~`, something that is no node id.
    #[error("behind '~' the path must name a node by its id, 64 hexadecimal digits")]
    Node,
    /// No worker id, or one that no worker can have.
    #[error(
        "the path names no worker: a worker id is 1 to {WORKER_ID_BYTES_MAX} characters that need no escaping in a URL"
    )]
    Worker,
}

/// The longest id of a worker in a path, in bytes: agents make theirs from a host name (at most 253) or a UUID.
pub const WORKER_ID_BYTES_MAX: usize = 256;

const SERVICE: &str = "/service";
const API_SERVICE: &str = "/api/service";
const WORKER: &str = "/worker";

/// Takes a path apart that begins with `/service/`, `/api/service/` or `/worker/`; `None` for every other path.
/// `path` is the request target's path as it came, still percent-encoded and without the query.
pub fn parse(path: &str) -> Option<Result<Route<'_>, RouteError>> {
    if let Some(tail) = path.strip_prefix(SERVICE).or_else(|| path.strip_prefix(API_SERVICE)) {
        let tail = tail.strip_prefix('/')?;
        return Some(service(path, tail));
    }
    let tail = path.strip_prefix(WORKER)?.strip_prefix('/')?;
    Some(worker(path, tail))
}

/// `{name}/…` or `~{node-id}/{name}/…`.
fn service<'a>(path: &'a str, tail: &'a str) -> Result<Route<'a>, RouteError> {
    let (first, rest) = segment(tail);
    let Some(node) = first.strip_prefix('~') else {
        return Ok(route(path, Target::Service { service: service_name(first)? }, rest));
    };
    let node = node.parse().map_err(|_| RouteError::Node)?;
    let (name, rest) = segment(rest.strip_prefix('/').unwrap_or(rest));
    Ok(route(path, Target::Node { node, service: service_name(name)? }, rest))
}

/// `{id}/{service}/…`.
fn worker<'a>(path: &'a str, tail: &'a str) -> Result<Route<'a>, RouteError> {
    let (id, rest) = segment(tail);
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~:@".contains(&b);
    if id.is_empty() || id.len() > WORKER_ID_BYTES_MAX || !id.bytes().all(unreserved) || matches!(id, "." | "..") {
        return Err(RouteError::Worker);
    }
    let (name, rest) = segment(rest.strip_prefix('/').unwrap_or(rest));
    Ok(route(path, Target::Worker { worker: id, service: service_name(name)? }, rest))
}

fn route<'a>(path: &'a str, target: Target<'a>, rest: &'a str) -> Route<'a> {
    let prefix = &path[..path.len() - rest.len()];
    Route { target, prefix, rest: if rest.is_empty() { "/" } else { rest } }
}

/// The text up to the next `/`, and the rest with it.
fn segment(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

fn service_name(name: &str) -> Result<&str, RouteError> {
    if ServiceName::is_valid(name) { Ok(name) } else { Err(RouteError::Service) }
}

/// What is known of a candidate besides its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing is wrong with it.
    Live,
    /// It left something unanswered: only when nobody else is there.
    Suspect,
    /// Not to be asked: it drains, its tunnel is closed, or this request has been there.
    Out,
}

/// A candidate as the balancing sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contender {
    /// Whether it may be asked.
    pub standing: Standing,
    /// Requests that it is answering for this service, as far as is known here.
    pub in_flight: u32,
    /// How many it takes at once.
    pub capacity: u32,
    /// What an answer costs, from [`PeakEwma`]: microseconds, failures counted as slow answers.
    pub cost_us: f32,
}

impl Contender {
    /// Whether it takes no more for now, as far as is known here.
    pub fn is_full(&self) -> bool {
        self.in_flight >= self.capacity
    }

    /// The expected wait: everybody in front, and the request itself, each at the usual cost.
    fn score(&self) -> f32 {
        self.cost_us.max(1.0) * (self.in_flight as f32 + 1.0)
    }
}

/// The candidates of one request. They are looked at one by one, so that a thousand of them cost no more than two.
pub trait Field {
    /// How many there are.
    fn len(&self) -> usize;
    /// The one at `index`, below [`Field::len`].
    fn contender(&self, index: usize) -> Contender;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Field for &[Contender] {
    fn len(&self) -> usize {
        <[Contender]>::len(self)
    }
    fn contender(&self, index: usize) -> Contender {
        self[index]
    }
}

/// Who takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The candidate of this index.
    Take(usize),
    /// There are some that may be asked, and all of them are full: it is worth waiting for a moment.
    AllFull,
    /// Nobody may be asked.
    Nobody,
}

/// How requests are spread over the nodes that offer a service.
pub trait BalancingPolicy {
    /// Chooses among the candidates. Never one that is [`Standing::Out`] or full.
    fn pick(&self, field: &dyn Field, random: &mut fastrand::Rng) -> Pick;
}

/// Two at random, and of those the one with the shorter expected wait (Mitzenmacher, "The power of two choices in
/// randomized load balancing", 2001). Suspects only when nobody live is free.
#[derive(Debug, Clone, Copy, Default)]
pub struct PowerOfTwoChoices;

impl PowerOfTwoChoices {
    /// Draws at random before everybody is looked at: enough that with half of the candidates out of the running the
    /// full look is taken in one of 64 requests.
    const DRAWS: usize = 8;
}

impl BalancingPolicy for PowerOfTwoChoices {
    fn pick(&self, field: &dyn Field, random: &mut fastrand::Rng) -> Pick {
        let len = field.len();
        // The usual case, without looking at everybody: two distinct live ones with room.
        if len > 2 {
            let mut first: Option<(usize, Contender)> = None;
            for _ in 0..Self::DRAWS {
                let index = random.usize(..len);
                let contender = field.contender(index);
                if contender.standing != Standing::Live || contender.is_full() {
                    continue;
                }
                match first {
                    None => first = Some((index, contender)),
                    Some((other, _)) if other == index => {}
                    Some((other, its)) => {
                        return Pick::Take(if contender.score() < its.score() { index } else { other });
                    }
                }
            }
        }
        let mut waiting = false;
        for standing in [Standing::Live, Standing::Suspect] {
            // A reservoir of two: each pair of those that have room is as likely as any other.
            let (mut seen, mut pair) = (0, [None; 2]);
            for index in 0..len {
                let contender = field.contender(index);
                if contender.standing != standing {
                    continue;
                }
                if contender.is_full() {
                    waiting = true;
                    continue;
                }
                let place = if seen < 2 { seen } else { random.usize(..=seen) };
                if let Some(slot) = pair.get_mut(place) {
                    *slot = Some((index, contender.score()));
                }
                seen += 1;
            }
            match pair {
                [Some((a, its)), Some((b, other))] => {
                    // The first of a pair is the one of lower index: a tie must not always go to it.
                    let tie = its == other && random.bool();
                    return Pick::Take(if other < its || tie { b } else { a });
                }
                [Some((a, _)), None] => return Pick::Take(a),
                _ => {}
            }
        }
        if waiting { Pick::AllFull } else { Pick::Nobody }
    }
}

/// Who may answer for a service that is asked for by its bare name. A node's service under its own id
/// ([`Target::Node`]) is not asked about.
pub trait ServicePolicy: Send + Sync {
    /// Whether `node` may answer for `service`.
    fn may_answer(&self, node: &NodeId, service: &ServiceName) -> bool;
}

/// Anybody may answer for anything: for trying it out, and as the first federations run.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnybodyMayAnswer;

impl ServicePolicy for AnybodyMayAnswer {
    fn may_answer(&self, _: &NodeId, _: &ServiceName) -> bool {
        true
    }
}

/// What an answer of a node costs: an exponentially weighted moving average of its latency that jumps to a peak at
/// once and forgets it slowly (Finagle's `PeakEwma`). A failure counts as an answer that took
/// [`PeakEwma::FAILURE`], so that the node which fails fastest does not look like the fastest. Copy, eight bytes: it
/// fits an atomic (see [`PeakEwma::to_bits`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakEwma {
    cost_us: f32,
    stamp_ms: u32,
}

impl PeakEwma {
    /// What a failure costs: slower than any healthy small service, and forgotten to the level of a 10 ms service
    /// within six [`PeakEwma::DECAY`], half a minute, so that the node gets another chance.
    pub const FAILURE: Duration = Duration::from_secs(4);
    /// What an answer that is an error of the service costs at least: less than a broken one, since the request may be
    /// to blame, and more than what healthy services take, since the node that errs fastest must not win either.
    pub const ERROR_ANSWER: Duration = Duration::from_secs(1);
    /// After this long an old sample weighs 1/e.
    pub const DECAY: Duration = Duration::from_secs(5);
    /// What is assumed of a node that has not answered anything yet: little, so that it is tried.
    pub const UNKNOWN: Duration = Duration::from_millis(1);

    /// Nothing known, at `now` (since any origin, the same in every call).
    pub fn new(now: Duration) -> Self {
        Self { cost_us: Self::UNKNOWN.as_micros() as f32, stamp_ms: millis(now) }
    }

    /// Takes in an answer's latency.
    pub fn answered(&mut self, now: Duration, latency: Duration) {
        self.sample(now, latency);
    }

    /// Takes in the latency of an answer that is an error of the service (5xx).
    pub fn answered_with_error(&mut self, now: Duration, latency: Duration) {
        self.sample(now, latency.max(Self::ERROR_ANSWER));
    }

    /// Takes in a failure that took `latency` to show.
    pub fn failed(&mut self, now: Duration, latency: Duration) {
        self.sample(now, latency.max(Self::FAILURE));
    }

    fn sample(&mut self, now: Duration, latency: Duration) {
        let sample_us = latency.as_micros() as f32;
        self.cost_us = if sample_us > self.cost_us {
            sample_us
        } else {
            let weight = self.weight(now);
            self.cost_us * weight + sample_us * (1.0 - weight)
        };
        self.stamp_ms = millis(now);
    }

    /// The cost at `now`, in microseconds: a peak that nothing confirmed fades.
    pub fn cost_us(&self, now: Duration) -> f32 {
        let floor = Self::UNKNOWN.as_micros() as f32;
        if self.cost_us <= floor { self.cost_us } else { floor + (self.cost_us - floor) * self.weight(now) }
    }

    fn weight(&self, now: Duration) -> f32 {
        // Wraps after 49 days, and then an old sample counts as a new one, once. A clock that ran backwards is age 0.
        let age_ms = millis(now).wrapping_sub(self.stamp_ms);
        if age_ms > u32::MAX / 2 { 1.0 } else { (-(age_ms as f32) / Self::DECAY.as_millis() as f32).exp() }
    }

    /// As a number that an atomic can hold.
    pub fn to_bits(self) -> u64 {
        u64::from(self.cost_us.to_bits()) << 32 | u64::from(self.stamp_ms)
    }

    /// The reverse of [`PeakEwma::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self { cost_us: f32::from_bits((bits >> 32) as u32), stamp_ms: bits as u32 }
    }
}

fn millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routed(path: &str) -> Route<'_> {
        parse(path).expect("a route").expect("a good one")
    }

    #[test]
    fn the_rest_of_the_target_goes_on_byte_for_byte() {
        let all = [
            ("/service/web", "/service/web", "/"),
            ("/service/web/", "/service/web", "/"),
            ("/service/web/a%2Fb//../c", "/service/web", "/a%2Fb//../c"),
            ("/api/service/web/x", "/api/service/web", "/x"),
            ("/service/web//service/other", "/service/web", "//service/other"),
        ];
        for (path, prefix, rest) in all {
            assert_eq!(routed(path), Route { target: Target::Service { service: "web" }, prefix, rest }, "{path}");
        }
    }

    #[test]
    fn one_nodes_service_has_a_path_of_its_own() {
        let node = NodeId([0xab; 32]);
        let path = format!("/service/~{node}/web/x");
        let prefix = format!("/service/~{node}/web");
        assert_eq!(
            routed(&path),
            Route { target: Target::Node { node, service: "web" }, prefix: prefix.as_str(), rest: "/x" }
        );
        for bad in ["/service/~", "/service/~ab/web", "/api/service/~zz/web"] {
            assert_eq!(parse(bad), Some(Err(RouteError::Node)), "{bad}");
        }
        for bad in [format!("/service/~{node}"), format!("/service/~{node}/"), format!("/service/~{node}/../x")] {
            assert_eq!(parse(&bad), Some(Err(RouteError::Service)), "{bad}");
        }
    }

    #[test]
    fn a_worker_is_named_by_its_id() {
        let route = routed("/worker/gpu-01.lan/llm/v1/chat");
        assert_eq!(route.target, Target::Worker { worker: "gpu-01.lan", service: "llm" });
        assert_eq!((route.prefix, route.rest), ("/worker/gpu-01.lan/llm", "/v1/chat"));
        for bad in ["/worker/", "/worker//llm", "/worker/../llm", "/worker/a%2fb/llm"] {
            assert_eq!(parse(bad), Some(Err(RouteError::Worker)), "{bad}");
        }
        assert_eq!(parse("/worker/a"), Some(Err(RouteError::Service)));
    }

    #[test]
    fn a_name_that_no_service_can_have_is_an_error_and_other_paths_are_none_of_ours() {
        let long = format!("/service/{}/", "x".repeat(65));
        for bad in
            ["/service/", "/service//x", "/service/../x", "/service/%2f/x", "/service/a%2fb", "/service/a b", &long]
        {
            assert_eq!(parse(bad), Some(Err(RouteError::Service)), "{bad}");
        }
        for other in
            ["", "/", "/service", "/services/web", "/api/services/list", "/api/worker/register", "/worker", "*"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_node_that_fails_fastest_does_not_win() {
        let now = Duration::from_secs(100);
        let (mut failing, mut slow) = (PeakEwma::new(now), PeakEwma::new(now));
        failing.failed(now, Duration::from_micros(50));
        slow.answered(now, Duration::from_millis(300));
        assert!(failing.cost_us(now) > 10.0 * slow.cost_us(now));
        let later = now + 8 * PeakEwma::DECAY;
        assert!(failing.cost_us(later) < 10_000.0, "it gets another chance");
    }

    #[test]
    fn a_peak_shows_at_once_and_fades() {
        let mut ewma = PeakEwma::new(Duration::ZERO);
        ewma.answered(Duration::from_secs(1), Duration::from_millis(500));
        assert_eq!(ewma.cost_us(Duration::from_secs(1)), 500_000.0);
        let later = Duration::from_secs(1) + PeakEwma::DECAY;
        ewma.answered(later, Duration::from_millis(5));
        let cost = ewma.cost_us(later);
        assert!((150_000.0..250_000.0).contains(&cost), "{cost}");
    }

    #[test]
    fn load_is_spread_towards_the_less_loaded() {
        let live = |in_flight| Contender { standing: Standing::Live, in_flight, capacity: 100, cost_us: 1000.0 };
        let mut random = fastrand::Rng::with_seed(7);
        let mut field = vec![live(0); 20];
        for _ in 0..400 {
            let Pick::Take(index) = PowerOfTwoChoices.pick(&&*field, &mut random) else { panic!("somebody is free") };
            field[index].in_flight += 1;
        }
        let most = field.iter().map(|c| c.in_flight).max();
        assert!(most <= Some(24), "two choices keep 400 over 20 within a few of 20 each: {most:?}");
    }

    fn contender() -> impl Strategy<Value = Contender> {
        let standing = prop_oneof![Just(Standing::Live), Just(Standing::Suspect), Just(Standing::Out)];
        (standing, 0u32..4, 1u32..4, 0f32..1e7).prop_map(|(standing, in_flight, capacity, cost_us)| Contender {
            standing,
            in_flight,
            capacity,
            cost_us,
        })
    }

    proptest! {
        #[test]
        fn a_pick_is_free_and_as_live_as_any(field in prop::collection::vec(contender(), 0..24), seed: u64) {
            let mut random = fastrand::Rng::with_seed(seed);
            let askable = |c: &&Contender| c.standing != Standing::Out;
            let best = field.iter().filter(askable).filter(|c| !c.is_full()).map(|c| c.standing).min();
            match PowerOfTwoChoices.pick(&&*field, &mut random) {
                Pick::Take(index) => {
                    prop_assert!(!field[index].is_full());
                    prop_assert_eq!(Some(field[index].standing), best);
                }
                Pick::AllFull => prop_assert!(best.is_none() && field.iter().filter(askable).count() > 0),
                Pick::Nobody => prop_assert_eq!(field.iter().filter(askable).count(), 0),
            }
        }

        #[test]
        fn every_path_parses_or_is_refused_and_nothing_is_lost(path in "(/service|/api/service|/worker)?(/[~a-zA-Z0-9%._/-]{0,12}){0,4}") {
            if let Some(Ok(route)) = parse(&path) {
                let rest = if path.len() == route.prefix.len() { "" } else { route.rest };
                prop_assert_eq!(&format!("{}{rest}", route.prefix), &path);
                prop_assert!(route.rest.starts_with('/') && ServiceName::new(route.target.service()).is_ok());
            }
        }

        #[test]
        fn the_average_survives_its_bits(cost in 0u64..1 << 40, at in 0u64..1 << 40) {
            let mut ewma = PeakEwma::new(Duration::ZERO);
            ewma.answered(Duration::from_millis(at), Duration::from_micros(cost));
            prop_assert_eq!(PeakEwma::from_bits(ewma.to_bits()), ewma);
        }
    }
}
