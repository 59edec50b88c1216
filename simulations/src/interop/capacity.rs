//! A service's capacity is its node's own decision, whoever asks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;

use super::{Check, must};
use crate::client::load::{Failure, Load, Plan, Sample, Target};
use crate::client::until;
use crate::federation::{Lab, NodeSpec, READY_WITHIN};
use crate::service::Kind;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "capacity-one-entry",
            "a service of capacity 2 never sees a third request at once from one entry",
            &[],
            one_entry,
        ),
        Check::new(
            "capacity-two-entries",
            "nor from two entries of one federation, and neither keeps it from the other's clients",
            &[],
            two_entries,
        ),
        Check::new(
            "capacity-two-doors",
            "nor from an entry and the node's own port together, and neither keeps it from the other's clients",
            &[],
            two_doors,
        ),
    ]
}

async fn two_entries(lab: Arc<Lab>) -> Result<String> {
    let first = lab.entry("entry-1", &[]).await?;
    let key = first.ready["node_id"].as_str().context("the entry does not say its key")?;
    let second = lab.entry("entry-2", &["--federation-key", key]).await?;
    let service = lab.service("kit", Kind::Kit).await?;
    let spec = NodeSpec::worker("worker").offers("kit", service.listen, 2);
    let mut worker = lab.start_node(spec, &[&first, &second])?;
    worker.joined().await?;
    for entry in [&first, &second] {
        until(entry.http, "/service/kit/hello", READY_WITHIN, |answer| answer.status == 200).await?;
    }
    let (one, two) = (Load::start(crowd(first.http)), Load::start(crowd(second.http)));
    let (one, two) = shares(&one.finished().await, &two.finished().await)?;
    let seen = service.evidence().await?.running_max;
    must!(seen <= 2, "the service saw {seen} requests at once");
    Ok(format!("meanwhile {one} through one entry and {two} through the other, at most {seen} at once"))
}

async fn one_entry(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let service = lab.service("kit", Kind::Kit).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("kit", service.listen, 2), &entry).await?;
    let samples = Load::start(crowd(entry.http)).finished().await;
    let (good, full) = judge(&samples)?;
    let seen = service.evidence().await?.running_max;
    must!(seen <= 2, "the service saw {seen} requests at once");
    must!(seen == 2 && good > 0, "only {good} were served, {seen} at once: the check proves nothing");
    Ok(format!("8 clients: {good} served, {full} told to come again, at most {seen} at once"))
}

async fn two_doors(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let service = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", service.listen, 2), &entry).await?;
    let own_port = worker.listen.context("the node has no port of its own")?;
    let (public, lan) = (Load::start(crowd(entry.http)), Load::start(crowd(own_port)));
    let (public, lan) = shares(&public.finished().await, &lan.finished().await)?;
    let seen = service.evidence().await?.running_max;
    must!(seen <= 2, "the service saw {seen} requests at once");
    Ok(format!("meanwhile {public} through the entry and {lan} through its own port, at most {seen} at once"))
}

fn crowd(to: SocketAddr) -> Plan {
    let path = "/service/kit/slow?ms=20".to_owned();
    let target = Target { label: "GET", method: "GET", path, body: Bytes::new(), expected: "kit", weight: 1 };
    Plan { to, targets: vec![target], clients: 8, rest: Duration::from_millis(5), total: Some(200) }
}

/// How many were served of either load while both ran. They ask alike, so neither may have less than half of the other.
fn shares(one: &[Sample], two: &[Sample]) -> Result<(usize, usize)> {
    let (all_one, all_two) = (judge(one)?, judge(two)?);
    let end = |sample: &Sample| sample.at + sample.took;
    let ended = |samples: &[Sample]| samples.iter().map(end).max().unwrap_or_default();
    let both = ended(one).min(ended(two));
    let served =
        |samples: &[Sample]| samples.iter().filter(|sample| sample.result.is_ok() && end(sample) <= both).count();
    let shares = (served(one), served(two));
    let (less, more) = (shares.0.min(shares.1), shares.0.max(shares.1));
    must!(
        2 * less >= more && less > 0,
        "one took it all: {shares:?} meanwhile, {all_one:?} and {all_two:?} in the end"
    );
    Ok(shares)
}

/// How many were served and how many were told that it is full; anything else is wrong.
fn judge(samples: &[Sample]) -> Result<(usize, usize)> {
    let good = samples.iter().filter(|sample| sample.result.is_ok()).count();
    let full = samples.iter().filter(|sample| matches!(sample.result, Err(Failure::Status(503, _)))).count();
    let others: Vec<_> = samples
        .iter()
        .filter_map(|sample| sample.result.as_ref().err())
        .filter(|failure| !matches!(failure, Failure::Status(503, _)))
        .collect();
    must!(others.is_empty(), "neither served nor told that it is full: {others:?}");
    Ok((good, full))
}
