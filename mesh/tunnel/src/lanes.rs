//! Further connections to one entry, one for each of its threads: a request then never crosses from thread to thread.
//!
//! The kernel deals connections out to the threads by the node's port (SO_REUSEPORT), so the node dials from new ports
//! until the Hello names a thread that it has no connection to yet.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_proto::backoff::Backoff;
use hedgerow_proto::frame::{Hello, close};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{Instrument, debug};

use crate::accept::TunnelError;
use crate::dial::{DialConfig, Directory, End, Target, greet, join, run};
use crate::serve::Activity;
use crate::ways::Way;

/// Ports tried for each thread of the entry before a pause: enough that one of 16 threads is missed once in 10,000 times.
const TRIES_PER_SHARD: u32 = 10;
/// The pause. It is an optimisation that failed: nothing depends on it.
const PAUSE: Duration = Duration::from_secs(60);

/// The further connections of a tunnel, each with the thread that it leads to. They end when this is dropped.
pub(crate) type Lanes = JoinSet<u16>;

/// Where they lead.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) directory: &'a dyn Directory,
    pub(crate) target: &'a Target,
    pub(crate) way: &'a Way,
    /// What was said on the first connection.
    pub(crate) first: &'a Hello,
}

/// Keeps the further connections up for as long as it is polled.
pub(crate) async fn keep(
    running: &mut Lanes,
    config: &DialConfig,
    to: Destination<'_>,
    activity: &Arc<Activity>,
    on_count: impl Fn(u16),
) -> Infallible {
    let wanted = usize::from(to.first.shards.min(config.lanes_max.max(1)));
    let mut covered = BTreeSet::from([to.first.shard]);
    let mut backoff = Backoff::new(config.seed ^ 1);
    let mut tries = 0;
    loop {
        if covered.len() >= wanted || tries >= TRIES_PER_SHARD * u32::from(to.first.shards) {
            tokio::select! {
                Some(ended) = running.join_next() => {
                    forget(&mut covered, ended);
                    sleep(backoff.next_wait()).await;
                }
                () = sleep(PAUSE), if covered.len() < wanted => {}
                () = std::future::pending(), if covered.len() >= wanted => {}
            }
            tries = 0;
            on_count(covered.len() as u16);
            continue;
        }
        tries += 1;
        match one(config, to, &covered, activity).await {
            Ok(Some((shard, lane))) => {
                covered.insert(shard);
                let lane = async move {
                    lane.await;
                    shard
                };
                running.spawn(lane.in_current_span());
                on_count(covered.len() as u16);
                backoff.succeeded();
            }
            Ok(None) => {}
            Err(error) => {
                debug!(%error, "a further connection failed");
                sleep(backoff.next_wait()).await;
            }
        }
        while let Some(ended) = running.try_join_next() {
            forget(&mut covered, ended);
        }
    }
}

fn forget(covered: &mut BTreeSet<u16>, ended: Result<u16, tokio::task::JoinError>) {
    if let Ok(shard) = ended {
        covered.remove(&shard);
    }
}

/// One attempt: `None` when it came to a thread that has a connection.
async fn one(
    config: &DialConfig,
    to: Destination<'_>,
    covered: &BTreeSet<u16>,
    activity: &Arc<Activity>,
) -> Result<Option<(u16, impl Future<Output = End> + Send + 'static)>, TunnelError> {
    let link = to.directory.dial(&config.key, to.target.entry, to.way).await?;
    let greeted = greet(link, to.target).await?;
    let shard = greeted.hello.shard;
    if greeted.hello.incarnation != to.first.incarnation || covered.contains(&shard) {
        greeted.link.close(close::GOING, "another thread is wanted");
        return Ok(None);
    }
    let joined = join(config, greeted, shard + 1).await?;
    let (config, activity) = (config.clone(), activity.clone());
    Ok(Some((shard, async move { run(&config, joined, &activity, |_| {}).await })))
}
