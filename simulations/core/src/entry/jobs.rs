//! Requests at an entry: who is asked, what is waited for, and what becomes of what comes to nothing. The product's own
//! [`Course`] and [`Waiting`] say so.

use std::time::Duration;

use hedgerow_proto::attempts::{Course, End, Next, Ring, Then, Upload, Waiting};
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::{Refusal, WhenFull};
use hedgerow_proto::id::NodeId;
use hedgerow_proto::record::{NodeRecord, ServiceHealth};
use hedgerow_proto::registry::Reach;
use hedgerow_proto::retry::{self, Failure, Outcome};
use hedgerow_proto::route::{PeakEwma, PowerOfTwoChoices};

use super::{Candidates, Entry, Job, LIMITS, Load, Running, SUSPECT_AFTER, WATCHDOG_INTERVAL, Way};
use crate::book::Ended;
use crate::context::Context;
use crate::message::{Message, RequestNumber};
use crate::net::ConnectionId;
use crate::settings::Settings;

impl Entry {
    /// Looks at the tunnels on which requests run.
    pub(super) fn watch(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        self.watch_at = None;
        for here in self.here.values_mut().filter(|here| here.in_flight > 0) {
            self.watch_at = Some(now + WATCHDOG_INTERVAL);
            match here.asked {
                Some(since) if now.since(since) >= SUSPECT_AFTER => here.suspect = true,
                Some(_) => {}
                None if now.since(here.heard) >= WATCHDOG_INTERVAL => {
                    here.asked = Some(now);
                    ctx.send(here.connection, Message::Ping(0));
                }
                None => {}
            }
        }
        let watching = |job: &Job| job.running.as_ref().is_some_and(|running| running.waiting.is_watching());
        let watching: Vec<RequestNumber> =
            self.jobs.iter().filter(|(_, job)| watching(job)).map(|(number, _)| *number).collect();
        for number in watching {
            let suspect = |running: &Running| self.is_suspect(running.way.connection);
            if self.jobs.get(&number).and_then(|job| job.running.as_ref()).is_some_and(suspect) {
                let may_leave = self.may_leave(ctx, number);
                let running = self.jobs.get_mut(&number).and_then(|job| job.running.as_mut());
                if let Some(failure) = running.and_then(|running| running.waiting.suspected(may_leave)) {
                    self.abandon(ctx, number, failure);
                }
            }
        }
    }

    pub(super) fn is_suspect(&self, connection: ConnectionId) -> bool {
        let here = self.by_connection.get(&connection).and_then(|node| self.here.get(node));
        here.is_none_or(|here| here.suspect)
    }

    /// What the timers of requests say.
    pub(super) fn look_at_jobs(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        let due = |job: &Job| {
            let rings_at = job.running.as_ref().map(|running| running.rings_at);
            [job.waits_until, rings_at].into_iter().flatten().any(|at| at <= now)
        };
        let due: Vec<RequestNumber> = self.jobs.iter().filter(|(_, job)| due(job)).map(|(number, _)| *number).collect();
        for number in due {
            let Some(job) = self.jobs.get_mut(&number) else { continue };
            if job.waits_until.take_if(|at| *at <= now).is_some() {
                job.course.waited(now);
                self.attempt(ctx, number);
            } else if let Some(running) = job.running.as_mut().filter(|running| running.rings_at <= now) {
                match running.waiting.rings(running.accepted, Upload::NONE) {
                    // What has begun is waited for: only its beginning has a time.
                    Ring::Failed(Failure::TimedOut) if job.passed_on => running.rings_at = now + LIMITS.answer_timeout,
                    Ring::Again(after) => running.rings_at = now + after,
                    Ring::Silent => self.silent(ctx, number),
                    Ring::Failed(failure) => self.abandon(ctx, number, failure),
                    Ring::Stalled => {}
                }
            }
        }
    }

    /// A node should have accepted by now: it is suspect, and left if there is somewhere to go.
    pub(super) fn silent(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
        let now = ctx.now();
        let may_leave = self.may_leave(ctx, number);
        let Some(running) = self.jobs.get_mut(&number).and_then(|job| job.running.as_mut()) else { return };
        let connection = running.way.connection;
        let left = match running.waiting.unaccepted(may_leave) {
            Ok(after) => {
                running.rings_at = now + after;
                None
            }
            Err(failure) => Some(failure),
        };
        if let Some(here) = self.by_connection.get(&connection).and_then(|node| self.here.get_mut(node)) {
            here.suspect = true;
        }
        if let Some(failure) = left {
            self.abandon(ctx, number, failure);
        }
    }

    pub(super) fn may_leave(&mut self, ctx: &mut Context<'_>, number: RequestNumber) -> bool {
        let now = ctx.now();
        let Some(job) = self.jobs.get(&number).filter(|job| !job.passed_on) else { return false };
        let Some(running) = &job.running else { return false };
        let ways = self.ways(ctx.settings, job.service);
        let field = Candidates { ways: &ways, entry: self, service: job.service, now };
        let mut budget = self.budget.clone();
        let may_leave = job.course.may_leave(now, &running.way.node, &field, retry::Body::Replayable, &mut budget);
        self.budget = budget;
        may_leave
    }

    /// The attempt is given up: whoever works on it hears so.
    pub(super) fn abandon(&mut self, ctx: &mut Context<'_>, number: RequestNumber, failure: Failure) {
        self.cancel_running(ctx, number);
        self.failed(ctx, number, failure);
    }

    pub(super) fn cancel_running(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
        if let Some(job) = self.jobs.get(&number)
            && let Some(running) = &job.running
        {
            ctx.send(running.way.connection, Message::Cancel { request: number, attempt: job.number });
        }
    }

    pub(super) fn cancel(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
        self.cancel_running(ctx, number);
        self.release(ctx.now(), number, Err(None));
        self.jobs.remove(&number);
    }

    pub(super) fn on_request(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
        let Some(asked) = ctx.book.requests.get(&number) else { return };
        let job = Job {
            service: asked.service,
            course: Course::new(ctx.now(), asked.repeat, LIMITS),
            number: 0,
            running: None,
            waits_until: None,
            passed_on: false,
        };
        self.jobs.insert(number, job);
        self.budget.deposit(ctx.now().since_origin());
        self.attempt(ctx, number);
    }

    /// The way to a node: its own tunnel, or its home's.
    pub(super) fn way_to(&self, node: &NodeId) -> Option<Way> {
        if let Some(here) = self.here.get(node) {
            return (!here.leaving).then_some(Way { node: *node, connection: here.connection, via: None, capacity: 0 });
        }
        let Reach::ViaHome(home) = self.registry.reach(node) else { return None };
        let here = self.here.get(&home).filter(|here| !here.leaving)?;
        Some(Way { node: *node, connection: here.connection, via: Some(*node), capacity: 0 })
    }

    /// Who offers a service, and can be asked from here.
    pub(super) fn ways(&self, settings: &Settings, service: u32) -> Vec<Way> {
        let Some(name) = settings.services.get(service as usize) else { return Vec::new() };
        let offer = |record: &NodeRecord| {
            let offers = record.services.iter();
            let mut up = offers.filter(|offer| offer.name == *name && offer.health == ServiceHealth::Up);
            up.next().map(|offer| offer.capacity)
        };
        let mut ways = Vec::new();
        for (node, here) in self.here.iter().filter(|(_, here)| !here.leaving) {
            if let Some(capacity) = offer(&here.record) {
                ways.push(Way { node: *node, connection: here.connection, via: None, capacity });
            }
        }
        for worker in self.registry.workers().filter(|worker| !self.here.contains_key(&worker.record.writer)) {
            if let Some(capacity) = offer(worker.node)
                && let Some(way) = self.way_to(&worker.record.writer)
            {
                ways.push(Way { capacity, ..way });
            }
        }
        ways
    }

    /// Sends a request to whom the balancing picks.
    pub(super) fn attempt(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
        let now = ctx.now();
        let queued = self.jobs.values().filter(|job| job.waits_until.is_some()).count();
        let Some(mut job) = self.jobs.remove(&number) else { return };
        let ways = self.ways(ctx.settings, job.service);
        let mut random = self.random.clone();
        let field = Candidates { ways: &ways, entry: self, service: job.service, now };
        let next = job.course.next(now, &field, &PowerOfTwoChoices, &mut random, || queued);
        self.random = random;
        match next {
            Next::Ask(index) => {
                let way = ways[index];
                self.jobs.insert(number, job);
                self.send(ctx, number, way);
            }
            Next::Wait(pause) => {
                job.waits_until = Some(now + pause);
                self.jobs.insert(number, job);
            }
            Next::End(end) => {
                self.jobs.insert(number, job);
                self.give_up(ctx, number, end);
            }
        }
    }

    pub(super) fn send(&mut self, ctx: &mut Context<'_>, number: RequestNumber, way: Way) {
        let now = ctx.now();
        let Some(job) = self.jobs.get_mut(&number) else { return };
        job.number += 1;
        let (service, attempt, when_full) = (job.service, job.number, job.course.when_full());
        let here = self.by_connection.get(&way.connection).and_then(|node| self.here.get_mut(node));
        let rtt = here.as_ref().map_or(Duration::ZERO, |here| here.rtt);
        let (waiting, rings_after) = Waiting::begin(&job.course, rtt);
        job.running = Some(Running { way, since: now, accepted: false, waiting, rings_at: now + rings_after });
        let load = self.loads.entry((way.node, service));
        load.or_insert(Load { cost: PeakEwma::new(now.since_origin()), in_flight: 0 }).in_flight += 1;
        if let Some(here) = here {
            here.in_flight += 1;
        }
        self.watch_at.get_or_insert(now + WATCHDOG_INTERVAL);
        let waits = when_full == WhenFull::Wait;
        ctx.send(way.connection, Message::Open { request: number, service, attempt, waits, via: way.via });
    }

    /// An attempt came to nothing: the rule says what next.
    pub(super) fn failed(&mut self, ctx: &mut Context<'_>, number: RequestNumber, failure: Failure) {
        let now = ctx.now();
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let Some(running) = &job.running else { return };
        let (way, since) = (running.way, running.since);
        let answer = if job.passed_on { retry::Answer::PassedOn } else { retry::Answer::Nothing };
        let penalty = match failure {
            Failure::Refused(Refusal::ServiceDown) | Failure::NotSent | Failure::Broken | Failure::TimedOut => true,
            Failure::Refused(_) | Failure::StaleConnection | Failure::Unaccepted | Failure::Suspected => false,
        };
        let then = job.course.failed(now, way.node, failure, retry::Body::Replayable, answer, &mut self.budget);
        self.release(now, number, Err(penalty.then(|| now.since(since))));
        match then {
            Then::Elsewhere => self.attempt(ctx, number),
            Then::SameNode => self.send(ctx, number, way),
            Then::End(end) => self.give_up(ctx, number, end),
        }
    }

    /// An attempt is over: with an answer, or with a failure that may count against the node.
    pub(super) fn release(&mut self, now: Time, number: RequestNumber, outcome: Result<Duration, Option<Duration>>) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let (service, Some(running)) = (job.service, job.running.take()) else { return };
        if let Some(load) = self.loads.get_mut(&(running.way.node, service)) {
            load.in_flight = load.in_flight.saturating_sub(1);
            match outcome {
                Ok(latency) => load.cost.answered(now.since_origin(), latency),
                Err(Some(latency)) => load.cost.failed(now.since_origin(), latency),
                Err(None) => {}
            }
        }
        let here = self.by_connection.get(&running.way.connection).and_then(|node| self.here.get_mut(node));
        if let Some(here) = here {
            here.in_flight = here.in_flight.saturating_sub(1);
        }
    }

    pub(super) fn give_up(&mut self, ctx: &mut Context<'_>, number: RequestNumber, end: End) {
        self.jobs.remove(&number);
        let ended = match end {
            End::Nobody | End::AllFull { .. } | End::Failed(Outcome::NotRun) => Ended::NotRun,
            End::TimedOut | End::Failed(Outcome::Unknown) => Ended::Unknown,
        };
        ctx.book.ends(ctx.net.now, number, ended);
    }
}
