//! A load: clients that ask one thing after another on kept connections, and write down what became of each request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Answer, Sent, ask_on, connect, request};

/// Longer than any request of a load may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// After a connection could not be had, a client waits a moment, as clients do.
const AFTER_NO_CONNECTION: Duration = Duration::from_millis(25);

/// One thing that clients ask for.
#[derive(Debug, Clone)]
pub struct Target {
    /// What to call it.
    pub label: &'static str,
    /// Method.
    pub method: &'static str,
    /// Path and query. `{key}` becomes a key that no other request has.
    pub path: String,
    /// Body.
    pub body: Bytes,
    /// What the answer's body must begin with; anything else is a failure.
    pub expected: &'static str,
    /// How many times as often as a target of weight 1 it is asked for.
    pub weight: usize,
}

/// What a load does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub targets: Vec<Target>,
    /// How many clients.
    pub clients: usize,
    /// How long a client rests between an answer and its next request.
    pub rest: Duration,
    /// The load ends by itself after that many requests.
    pub total: Option<usize>,
}

/// What became of one request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was sent, from the beginning of the load.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// Which of [`Plan::targets`].
    pub target: usize,
    /// Who answered, or what went wrong.
    pub result: Result<Served, Failure>,
}

/// A good answer.
#[derive(Debug, Clone)]
pub struct Served {
    /// The node, as the entry says.
    pub node: Arc<str>,
    /// How many nodes were tried.
    pub attempts: u32,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection to the entry.
    NoConnection,
    /// The connection broke, or no answer came.
    Broken(String),
    /// An error status; the code and outcome that the answer named.
    Status(u16, String),
    /// A good status and a wrong body.
    WrongBody(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoConnection => write!(f, "no connection"),
            Self::Broken(why) => write!(f, "{why}"),
            Self::Status(status, detail) => write!(f, "{status} {detail}"),
            Self::WrongBody(body) => write!(f, "a wrong body: {body}"),
        }
    }
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    begin: Instant,
    stop: watch::Sender<bool>,
    asked: AtomicUsize,
    keys: AtomicU64,
    order: Vec<usize>,
    samples: Mutex<Vec<Sample>>,
}

impl Load {
    /// Starts the clients.
    pub fn start(plan: Plan) -> Self {
        let order = plan.targets.iter().enumerate().flat_map(|(index, target)| vec![index; target.weight]).collect();
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            stop: watch::Sender::new(false),
            asked: AtomicUsize::new(0),
            keys: AtomicU64::new(0),
            order,
            samples: Mutex::default(),
            plan,
        });
        let mut clients = JoinSet::new();
        for number in 0..shared.plan.clients {
            clients.spawn(client(shared.clone(), number));
        }
        Self { shared, clients }
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.shared.begin
    }

    /// How many requests have been answered or failed.
    pub fn done(&self) -> usize {
        self.shared.samples().len()
    }

    /// Waits until that many requests have been answered or failed.
    pub async fn reaches(&self, count: usize, within: Duration) -> anyhow::Result<()> {
        let begin = Instant::now();
        while self.done() < count {
            ensure!(begin.elapsed() < within, "the load stands still at {} of {count}", self.done());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// For those who watch it while it runs.
    pub fn view(&self) -> View {
        View { shared: self.shared.clone() }
    }

    /// Waits until the planned total has been asked.
    pub async fn finished(mut self) -> Vec<Sample> {
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut *self.shared.samples())
    }

    /// Lets each client finish what it is at, and ends.
    pub async fn stop(self) -> Vec<Sample> {
        self.shared.stop.send_replace(true);
        self.finished().await
    }
}

/// A look at a load that runs.
#[derive(Debug, Clone)]
pub struct View {
    shared: Arc<Shared>,
}

impl View {
    /// When the load began.
    pub fn began(&self) -> Instant {
        self.shared.begin
    }

    /// The samples from this one on.
    pub fn samples_from(&self, index: usize) -> Vec<Sample> {
        self.shared.samples().get(index..).map(<[Sample]>::to_vec).unwrap_or_default()
    }
}

impl Shared {
    fn samples(&self) -> std::sync::MutexGuard<'_, Vec<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<usize> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let over = *self.stop.borrow() || self.plan.total.is_some_and(|total| number >= total);
        (!over).then(|| self.order[number % self.order.len()])
    }
}

async fn client(shared: Arc<Shared>, number: usize) {
    let mut connection = None;
    // Clients do not march in step.
    tokio::time::sleep(shared.plan.rest.mul_f64(number as f64 / shared.plan.clients as f64)).await;
    while let Some(target) = shared.next() {
        let begin = Instant::now();
        let result = tokio::time::timeout(REQUEST_TIMEOUT, one(&shared, target, &mut connection))
            .await
            .unwrap_or_else(|_| Err(Failure::Broken("no answer in time".to_owned())));
        let took = begin.elapsed();
        if result.is_err() {
            connection = None;
        }
        let no_connection = matches!(result, Err(Failure::NoConnection));
        shared.samples().push(Sample { at: begin - shared.begin, took, target, result });
        let rest = if no_connection { AFTER_NO_CONNECTION.max(shared.plan.rest) } else { shared.plan.rest };
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
    }
}

async fn one(shared: &Shared, target: usize, connection: &mut Option<SendRequest<Sent>>) -> Result<Served, Failure> {
    let plan = &shared.plan;
    let target = &plan.targets[target];
    let mut sender = match kept(connection).await {
        Some(kept) => kept,
        None => connect(plan.to).await.map_err(|_| Failure::NoConnection)?,
    };
    let key = shared.keys.fetch_add(1, Ordering::Relaxed);
    let path = target.path.replace("{key}", &format!("load-{key}"));
    let answer = ask_on(&mut sender, plan.to, request(target.method, &path, target.body.clone()))
        .await
        .map_err(|error| Failure::Broken(format!("{error:#}")))?;
    *connection = Some(sender);
    judge(target, &answer)
}

/// The kept connection, if it can still be used.
async fn kept(connection: &mut Option<SendRequest<Sent>>) -> Option<SendRequest<Sent>> {
    let mut kept = connection.take()?;
    kept.ready().await.ok()?;
    Some(kept)
}

fn judge(target: &Target, answer: &Answer) -> Result<Served, Failure> {
    if !answer.status.is_success() {
        let problem = answer.json();
        let word = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        let detail = format!("{} {}", word("code"), word("outcome"));
        return Err(Failure::Status(answer.status.as_u16(), detail.trim().to_owned()));
    }
    if !answer.body.starts_with(target.expected.as_bytes()) {
        return Err(Failure::WrongBody(answer.summary()));
    }
    Ok(Served {
        node: answer.header("x-hedgerow-served-by").into(),
        attempts: answer.header("x-hedgerow-attempts").parse().unwrap_or(1),
    })
}

/// Counts failures by their reason.
pub fn reasons<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> BTreeMap<Failure, usize> {
    let mut reasons = BTreeMap::new();
    for failure in samples.into_iter().filter_map(|sample| sample.result.as_ref().err()) {
        *reasons.entry(failure.clone()).or_default() += 1;
    }
    reasons
}

/// The share of `values` that is at or below the result: 0.5 is the median. Zero if there are none.
pub fn quantile(values: &mut [Duration], share: f64) -> Duration {
    values.sort_unstable();
    let index = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(index).or(values.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let mut values: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut values, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&mut values, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&mut values, 1.0), Duration::from_millis(100));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }
}
