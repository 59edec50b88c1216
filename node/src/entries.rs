//! Keeps one tunnel up to every entry: of each URL that the operator named, every address; of each address, whoever answers
//! there. Addresses come and go with the DNS, entries with their keys; this follows them.
//!
//! ```text
//! URL ── resolve ──▶ addresses ── bootstrap ──▶ entry key ──▶ one `maintain` task for each key
//!  ▲                                                │
//!  └── once a minute, or soon while one is missing ─┘
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hedgerow_process::patience::{Patience, Say};
use hedgerow_proto::id::{FederationId, NodeId};
use hedgerow_tunnel::link::BoxFuture;
use hedgerow_tunnel::{DialConfig, Directory, Target, TunnelState, TunnelStatus, maintain};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::bootstrap::{Bootstrap, Introduction};
use crate::entry_url::EntryUrl;

mod up;

pub use up::UpEntry;

/// How often the addresses of a host are looked up again when all is well.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);
/// A host whose addresses do not come within this has none for now.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause between attempts at an entry that is not there: a node should be back soon after its entry.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// The shortest one.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Lookups in a row that must miss an address before it counts as gone: some resolvers give a few of many in turn.
const MISSED_LOOKUPS_MAX: u32 = 3;
/// Once one address of an entry has answered, the others have this long.
const OTHER_ADDRESSES_GRACE: Duration = Duration::from_millis(200);
/// Addresses of one host that are followed; nobody needs more entries than this.
const ADDRESSES_MAX: usize = 16;

/// Makes the settings of a tunnel in a federation: a node signs its record for each federation that it is in.
pub type ConfigFor = Box<dyn Fn(FederationId, IpAddr) -> Result<DialConfig, String> + Send + Sync>;

/// All entries of this node.
pub struct Entries {
    bootstrap: Bootstrap,
    config_for: ConfigFor,
    tunnels: Mutex<BTreeMap<NodeId, Followed>>,
    unreachable: Mutex<BTreeMap<(String, Option<IpAddr>), Unreachable>>,
    random: Mutex<fastrand::Rng>,
    changed: watch::Sender<u64>,
    /// Somebody has found that the entries are not what they were: look again at once.
    again: watch::Sender<u64>,
}

/// An entry that has introduced itself.
struct Followed {
    url: EntryUrl,
    federation: FederationId,
    addresses: BTreeMap<IpAddr, u32>,
    status: watch::Receiver<TunnelStatus>,
    since: Instant,
    task: tokio::task::AbortHandle,
}

/// An address that does not answer, or a host without addresses (`None`).
struct Unreachable {
    patience: Patience,
    since: Instant,
    error: String,
}

/// How one entry is, for `status`.
#[derive(Debug, Clone)]
pub struct EntryView {
    /// As the operator wrote it.
    pub url: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its federation, once known.
    pub federation: Option<FederationId>,
    /// Since when it is in this state.
    pub since: Instant,
    /// The state.
    pub state: EntryState,
}

impl EntryView {
    /// Whether its tunnel is up.
    pub fn is_up(&self) -> bool {
        matches!(&self.state, EntryState::Known(status) if matches!(status.state, TunnelState::Up(_)))
    }
}

/// What is known of an entry.
#[derive(Debug, Clone)]
pub enum EntryState {
    /// It has introduced itself: the state of its tunnel.
    Known(TunnelStatus),
    /// It has not.
    Unreachable {
        /// Why not.
        error: String,
    },
}

impl Entries {
    /// Follows nothing yet. `seed` is for the jitter.
    pub fn new(bootstrap: Bootstrap, config_for: ConfigFor, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            bootstrap,
            config_for,
            tunnels: Mutex::default(),
            unreachable: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            changed: watch::Sender::new(0),
            again: watch::Sender::new(0),
        })
    }

    /// Changes whenever one of the entries does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How all of them are.
    pub fn view(&self) -> Vec<EntryView> {
        let known = lock(&self.tunnels);
        let mut views: Vec<_> = known
            .values()
            .map(|entry| {
                let status = entry.status.borrow().clone();
                let since = match &status.state {
                    TunnelState::Up(up) => up.since,
                    _ => entry.since,
                };
                EntryView {
                    url: entry.url.to_string(),
                    addresses: entry.addresses.keys().copied().collect(),
                    federation: Some(entry.federation),
                    since,
                    state: EntryState::Known(status),
                }
            })
            .collect();
        drop(known);
        views.extend(lock(&self.unreachable).iter().map(|((url, address), unreachable)| EntryView {
            url: url.clone(),
            addresses: address.iter().copied().collect(),
            federation: None,
            since: unreachable.since,
            state: EntryState::Unreachable { error: unreachable.error.clone() },
        }));
        views.sort_by(|a, b| a.url.cmp(&b.url));
        views
    }

    /// Whether requests can come from at least one entry.
    pub fn any_up(&self) -> bool {
        lock(&self.tunnels).values().any(|entry| matches!(entry.status.borrow().state, TunnelState::Up(_)))
    }

    /// Whether no tunnel is up, and so none has anything to finish.
    pub fn none_up(&self) -> bool {
        !self.any_up()
    }

    /// Closes all tunnels with whatever runs on them.
    pub fn cut(&self) {
        for entry in lock(&self.tunnels).values() {
            entry.task.abort();
        }
    }

    /// Ready when every tunnel's task has ended.
    pub async fn ended(&self) {
        let mut statuses: Vec<_> = lock(&self.tunnels).values().map(|entry| entry.status.clone()).collect();
        for status in &mut statuses {
            // The task drops its end as the last thing it does.
            while status.changed().await.is_ok() {}
        }
    }

    /// Follows these entries until dropped.
    pub async fn follow(self: Arc<Self>, urls: Vec<EntryUrl>) {
        let mut tasks = JoinSet::new();
        for url in urls {
            let entries = self.clone();
            tasks.spawn(async move { entries.follow_one(url).await });
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn follow_one(self: Arc<Self>, url: EntryUrl) {
        let origin = Instant::now();
        let mut failures = 0;
        let mut again = self.again.subscribe();
        loop {
            let complete = self.look(&url, origin).await;
            self.changed.send_modify(|count| *count += 1);
            failures = if complete { 0 } else { failures + 1 };
            let pause = {
                let random = &mut *lock(&self.random);
                if complete {
                    jitter(RESOLVE_INTERVAL / 2, RESOLVE_INTERVAL, random)
                } else {
                    retry_after(failures, random)
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                _ = again.changed() => {}
            }
        }
    }

    /// One look at all addresses of a host. True when each of them belongs to an entry that is followed.
    async fn look(self: &Arc<Self>, url: &EntryUrl, origin: Instant) -> bool {
        let addresses = match resolve(url).await {
            Ok(addresses) => {
                self.reached(url, None, origin);
                addresses
            }
            Err(error) => {
                self.failed(url, None, error, origin, true);
                return false;
            }
        };
        self.forget_missing(url, &addresses);
        let strangers: Vec<_> = addresses.into_iter().filter(|address| !self.is_followed(url, *address)).collect();
        let mut answers: FuturesUnordered<_> = strangers
            .iter()
            .map(|address| async move { (*address, self.bootstrap.ask(url, *address).await) })
            .collect();
        let mut errors = Vec::new();
        while let Some((address, answer)) = answers.next().await {
            match answer.map_err(|error| error.to_string()).and_then(|said| self.admit(url, address, said)) {
                Ok(()) => self.reached(url, Some(address), origin),
                Err(error) => errors.push((address, error)),
            }
        }
        let complete = errors.is_empty();
        // `localhost` often has an address on which nothing listens: a host that answers elsewhere is no reason to worry.
        let alone = !self.has_any(url);
        for (address, error) in errors {
            self.failed(url, Some(address), error, origin, alone);
        }
        complete
    }

    /// Takes an entry in that has introduced itself at this address.
    fn admit(self: &Arc<Self>, url: &EntryUrl, address: IpAddr, said: Introduction) -> Result<(), String> {
        if self.is_known(url, address, &said) {
            return Ok(());
        }
        let config = (self.config_for)(said.federation, address)?;
        let (sender, status) =
            watch::channel(TunnelStatus { entry: Some(said.entry), state: TunnelState::Connecting, failures: 0 });
        let directory = EntryDirectory {
            entries: Arc::downgrade(self),
            url: url.clone(),
            entry: said.entry,
            federation: said.federation,
        };
        let task = tokio::spawn(maintain(config, Arc::new(directory), sender));
        let watched = status.clone();
        let entries = Arc::downgrade(self);
        let (id, name) = (said.entry, url.to_string());
        tokio::spawn(async move { report(entries, id, name, watched).await });
        let followed = Followed {
            url: url.clone(),
            federation: said.federation,
            addresses: BTreeMap::from([(address, 0)]),
            status,
            since: Instant::now(),
            task: task.abort_handle(),
        };
        if let Some(old) = lock(&self.tunnels).insert(said.entry, followed) {
            old.task.abort();
        }
        Ok(())
    }

    /// Whether this entry has a tunnel already; then the address is one more way to it.
    fn is_known(&self, url: &EntryUrl, address: IpAddr, said: &Introduction) -> bool {
        let mut tunnels = lock(&self.tunnels);
        let Some(known) = tunnels.get_mut(&said.entry).filter(|known| known.federation == said.federation) else {
            return false;
        };
        debug!(entry = %said.entry.short(), %url, "another address of an entry that is known already");
        if known.url == *url {
            known.addresses.insert(address, 0);
        }
        true
    }

    fn is_followed(&self, url: &EntryUrl, address: IpAddr) -> bool {
        lock(&self.tunnels).values().any(|entry| entry.url == *url && entry.addresses.contains_key(&address))
    }

    fn has_any(&self, url: &EntryUrl) -> bool {
        lock(&self.tunnels).values().any(|entry| entry.url == *url)
    }

    /// Counts the lookups that miss an address; an entry without addresses is let go.
    fn forget_missing(&self, url: &EntryUrl, addresses: &[IpAddr]) {
        lock(&self.unreachable).retain(|(of, address), _| {
            *of != url.to_string() || address.is_none_or(|address| addresses.contains(&address))
        });
        lock(&self.tunnels).retain(|id, entry| {
            if entry.url != *url {
                return true;
            }
            entry.addresses.retain(|address, missed| {
                *missed = if addresses.contains(address) { 0 } else { *missed + 1 };
                *missed < MISSED_LOOKUPS_MAX
            });
            // A tunnel that is up is the better witness: it may carry requests, and its end will come by itself.
            let gone = entry.addresses.is_empty() && !matches!(entry.status.borrow().state, TunnelState::Up(_));
            if gone {
                info!(entry = %id.short(), %url, "the entry's address is gone from the DNS: it is not dialled any more");
                entry.task.abort();
            }
            !gone
        });
    }

    /// The entry at these addresses is not who it was: to be asked anew.
    fn let_go(&self, entry: &NodeId) {
        if let Some(old) = lock(&self.tunnels).remove(entry) {
            old.task.abort();
        }
        self.again.send_modify(|count| *count += 1);
    }

    fn failed(&self, url: &EntryUrl, address: Option<IpAddr>, error: String, origin: Instant, loud: bool) {
        let mut unreachable = lock(&self.unreachable);
        let entry = unreachable.entry((url.to_string(), address)).or_insert_with(|| Unreachable {
            patience: Patience::default(),
            since: Instant::now(),
            error: String::new(),
        });
        let say = entry.patience.failed(origin.elapsed());
        entry.error.clone_from(&error);
        drop(unreachable);
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        match say {
            Say::Fails if loud => warn!(
                entry = %url, address, %error,
                "cannot reach the entry; trying on until it answers. Check the address, and that this machine is online"
            ),
            Say::StillFails(after) if loud => {
                warn!(entry = %url, address, %error, tried_for_s = after.as_secs(), "still cannot reach the entry");
            }
            Say::Fails | Say::StillFails(_) => {
                debug!(entry = %url, address, %error, "one of the entry's addresses does not answer");
            }
            Say::WorksAgain(_) | Say::Nothing => {}
        }
    }

    fn reached(&self, url: &EntryUrl, address: Option<IpAddr>, origin: Instant) {
        let Some(mut entry) = lock(&self.unreachable).remove(&(url.to_string(), address)) else { return };
        if let Say::WorksAgain(after) = entry.patience.worked(origin.elapsed()) {
            info!(entry = %url, tried_for_s = after.as_secs(), "the entry answers");
        }
    }
}

/// Says in the log what becomes of a tunnel, seldom where nothing changes, and passes the news on.
async fn report(entries: std::sync::Weak<Entries>, id: NodeId, url: String, mut status: watch::Receiver<TunnelStatus>) {
    let (origin, mut patience) = (Instant::now(), Patience::default());
    let mut previous = None;
    loop {
        let now = status.borrow_and_update().clone();
        let entry = id.short();
        match &now.state {
            TunnelState::Up(_) => {
                if let Say::WorksAgain(after) = patience.worked(origin.elapsed()) {
                    debug!(entry, %url, down_for_ms = after.as_millis() as u64, "the tunnel is back");
                }
            }
            TunnelState::Waiting { error, .. } => match patience.failed(origin.elapsed()) {
                Say::Fails => {
                    warn!(entry, %url, %error, "no tunnel to the entry; it is dialled again until it is there")
                }
                Say::StillFails(after) => {
                    warn!(entry, %url, %error, down_for_s = after.as_secs(), "still no tunnel to the entry");
                }
                Say::WorksAgain(_) | Say::Nothing => {}
            },
            TunnelState::Rejected(reject) => {
                if !matches!(patience.failed(origin.elapsed()), Say::Nothing) {
                    warn!(entry, %url, reason = ?reject.reason, message = %reject.message, "the entry does not take this node");
                }
            }
            TunnelState::Connecting | TunnelState::Drained => {}
        }
        let Some(entries) = entries.upgrade() else { return };
        let kind = std::mem::discriminant(&now.state);
        if previous.replace(kind) != Some(kind) {
            if let Some(followed) = lock(&entries.tunnels).get_mut(&id) {
                followed.since = Instant::now();
            }
            entries.changed.send_modify(|count| *count += 1);
        }
        drop(entries);
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Where one entry is: asked by its tunnel before each attempt.
struct EntryDirectory {
    entries: std::sync::Weak<Entries>,
    url: EntryUrl,
    entry: NodeId,
    federation: FederationId,
}

impl Directory for EntryDirectory {
    fn target(&self) -> BoxFuture<'_, Result<Target, String>> {
        Box::pin(async move {
            let entries = self.entries.upgrade().ok_or("the node is stopping")?;
            let addresses: Vec<IpAddr> = lock(&entries.tunnels)
                .get(&self.entry)
                .map(|entry| entry.addresses.keys().copied().collect())
                .unwrap_or_default();
            let introductions = ask_all(&entries.bootstrap, &self.url, &addresses).await?;
            let (same, others): (Vec<_>, Vec<_>) = introductions
                .into_iter()
                .partition(|said| said.entry == self.entry && said.federation == self.federation);
            if same.is_empty() && !others.is_empty() {
                // It came back as somebody else: the follower finds out who, with a tunnel and a record to fit.
                entries.let_go(&self.entry);
                let url = &self.url;
                info!(entry = %self.entry.short(), %url, "the entry has another key or federation now: joining anew");
                return Err("the entry has another key or federation now".into());
            }
            let mut ways = Vec::new();
            for way in same.into_iter().flat_map(|said| said.ways) {
                if !ways.contains(&way) {
                    ways.push(way);
                }
            }
            Ok(Target { ways, entry: self.entry, federation: self.federation })
        })
    }
}

/// Asks all addresses at once; the first answer, and what others say soon after it.
async fn ask_all(bootstrap: &Bootstrap, url: &EntryUrl, addresses: &[IpAddr]) -> Result<Vec<Introduction>, String> {
    let mut answers: FuturesUnordered<_> = addresses.iter().map(|address| bootstrap.ask(url, *address)).collect();
    let mut error = "it has no address any more".to_owned();
    let mut said = loop {
        match answers.next().await {
            Some(Ok(introduction)) => break vec![introduction],
            Some(Err(failed)) => error = failed.to_string(),
            None => return Err(error),
        }
    };
    let others = async {
        while let Some(answer) = answers.next().await {
            said.extend(answer.ok());
        }
    };
    // The grace is over or all have answered: either is fine.
    let _ = timeout(OTHER_ADDRESSES_GRACE, others).await;
    Ok(said)
}

async fn resolve(url: &EntryUrl) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = url.host.parse() {
        return Ok(vec![address]);
    }
    let found = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((url.host.as_str(), url.port)))
        .await
        .map_err(|_| format!("the name {} was not resolved within {} s", url.host, RESOLVE_TIMEOUT.as_secs()))?
        .map_err(|error| format!("the name {} cannot be resolved: {error}", url.host))?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() { Err(format!("the name {} has no address", url.host)) } else { Ok(addresses) }
}

/// Full jitter below a bound that doubles: a thousand nodes do not come back in one moment.
fn retry_after(failures: u32, random: &mut fastrand::Rng) -> Duration {
    let bound = (RETRY_MIN * 2_u32.saturating_pow(failures.min(16))).min(RETRY_MAX);
    jitter(RETRY_MIN, bound, random)
}

fn jitter(from: Duration, to: Duration, random: &mut fastrand::Rng) -> Duration {
    from + to.saturating_sub(from).mul_f64(random.f64())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
