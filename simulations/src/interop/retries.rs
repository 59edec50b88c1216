//! What runs elsewhere, what does not, and what a client is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::{Check, must};
use crate::client::{ask, begin, get, post};
use crate::federation::{Lab, NodeSpec, READY_WITHIN};
use crate::service::Kind;
use crate::terminal::human;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "post-outcome-unknown",
            "a POST whose worker dies after ACCEPT is 502, outcome unknown, and never runs twice",
            &[],
            unknown,
        ),
        Check::new("post-refused", "a POST that was refused runs elsewhere, once", &[], refused),
        Check::new(
            "nobody-offers",
            "a service that nobody offers is 503 with Retry-After and a reason that names it",
            &[],
            nobody,
        ),
    ]
}

async fn unknown(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let mut services = Vec::new();
    let mut workers = Vec::new();
    for number in 1..=2 {
        let service = lab.service(&format!("kit-{number}"), Kind::Kit).await?;
        let spec = NodeSpec::worker(&format!("worker-{number}")).offers("kit", service.listen, 8);
        workers.push(lab.node(spec, &entry).await?);
        services.push(service);
    }
    let mut longest = Duration::ZERO;
    for number in 0..2 {
        let key = format!("once-{number}");
        let target = format!("/service/kit/slow?ms=60000&key={key}");
        let to = entry.http;
        let asked = tokio::spawn(async move { ask(to, post(&target, "do it once")).await });
        // Whichever runs it, dies.
        let ran = loop {
            let mut seen = Vec::new();
            for service in &services {
                seen.push(service.evidence().await?.runs.contains_key(&key));
            }
            if let Some(index) = seen.iter().position(|ran| *ran) {
                break index;
            }
            must!(!asked.is_finished(), "the POST was answered before it ran: {:?}", asked.await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        workers[ran].process.kill();
        let killed = Instant::now();
        let answer = asked.await??;
        longest = longest.max(killed.elapsed());
        let problem = answer.json();
        must!(answer.status == 502, "it was answered {}", answer.summary());
        must!(problem["outcome"] == "unknown", "its outcome was {}", answer.summary());
        must!(answer.header("content-type").starts_with("application/problem+json"), "it was no problem+json");
        let mut runs = 0;
        for service in &services {
            runs += service.evidence().await?.runs.get(&key).copied().unwrap_or(0);
        }
        must!(runs == 1, "it ran {runs} times");
        workers[ran].start_again()?;
        workers[ran].joined().await?;
        entry.until_it_routes_to(&workers[ran]).await?;
    }
    Ok(format!(
        "2 of 2 killed under a POST: 502, outcome unknown, each ran once; said after {} at most",
        human(longest)
    ))
}

async fn refused(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let full = lab.service("kit-full", Kind::Kit).await?;
    let free = lab.service("kit-free", Kind::Kit).await?;
    let _other = lab.node(NodeSpec::worker("worker-free").offers("kit", free.listen, 64), &entry).await?;
    // Most of those that may be chosen are full, and the entry cannot know: their slots are taken over their own ports.
    let (mut busy, mut holding) = (Vec::new(), JoinSet::new());
    for number in 1..=3 {
        let spec = NodeSpec::worker(&format!("worker-full-{number}")).offers("kit", full.listen, 1);
        let node = lab.node(spec, &entry).await?;
        let own_port = node.listen.context("the node has no port of its own")?;
        holding.spawn(async move { begin(own_port, get("/service/kit/slow?ms=60000")).await });
        full.until(READY_WITHIN, |evidence| evidence.running == number).await?;
        busy.push(node);
    }
    let mut elsewhere = 0;
    for number in 0..40 {
        let answer = ask(entry.http, post(&format!("/service/kit/digest?key=r-{number}"), "a body")).await?;
        must!(answer.status == 200, "a POST beside a full worker was answered {}", answer.summary());
        elsewhere += usize::from(answer.header("x-hedgerow-attempts") != "1");
    }
    let (at_full, at_free) = (full.evidence().await?, free.evidence().await?);
    must!(at_full.started == 3, "a full node passed on {} requests", at_full.started - 3);
    must!(at_free.runs.len() == 40 && at_free.runs.values().all(|runs| *runs == 1), "they ran {:?}", at_free.runs);
    must!(elsewhere > 0, "none was ever refused: the check proves nothing");
    Ok(format!("40 POSTs ran once each, {elsewhere} of them after a refusal"))
}

async fn nobody(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let empty = entry.get("/service/poetry/ode").await?;
    let service = lab.service("hello", Kind::Hello).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("hello", service.listen, 4), &entry).await?;
    let other = entry.get("/service/poetry/ode").await?;
    for answer in [&empty, &other] {
        must!(answer.status == 503, "it was answered {}", answer.summary());
        must!(answer.header("content-type").starts_with("application/problem+json"), "it was no problem+json");
        must!(
            answer.header("retry-after").parse::<u32>().is_ok(),
            "Retry-After was {:?}",
            answer.header("retry-after")
        );
        must!(answer.text().contains("poetry"), "the reason does not name the service: {}", answer.summary());
        must!(!answer.header("x-request-id").is_empty(), "no request id");
        must!(answer.json()["outcome"] == "not-run", "the outcome was {}", answer.json()["outcome"]);
    }
    let known = entry.get("/service/hello/").await?;
    must!(known.status == 200, "a service that is offered was answered {}", known.summary());
    Ok(format!(
        "503, Retry-After {}: {}",
        other.header("retry-after"),
        other.json()["detail"].as_str().unwrap_or_default()
    ))
}
