//! Requests at an entry: who is asked, what is waited for, and what becomes of what comes to nothing. The product's own
//! [`Course`] and [`Waiting`] say so.

use std::rc::Rc;
use std::time::Duration;

use hedgerow_proto::attempts::{Course, End, Next, Ring, Then, Upload, Waiting};
use hedgerow_proto::clock::Time;
use hedgerow_proto::frame::WhenFull;
use hedgerow_proto::liveness::Look;
use hedgerow_proto::retry::{self, Failure, Outcome};
use hedgerow_proto::route::{PeakEwma, PowerOfTwoChoices};

use super::{Candidates, Entry, Job, LIMITS, Load, Running, Way};
use crate::book::Ended;
use crate::context::Context;
use crate::message::{Message, RequestNumber};
use crate::net::ConnectionId;
use crate::settings::Settings;

impl Entry {
    /// Looks at the tunnels on which requests run.
    pub(super) fn watch(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        for (connection, tunnel) in &mut self.tunnels {
            if tunnel.dog.poll_timeout().is_none_or(|at| at > now) {
                continue;
            }
            let is_watched = tunnel.in_flight > 0 || tunnel.silent;
            match tunnel.dog.look(now, tunnel.received, tunnel.rtt, is_watched) {
                Look::Heard => tunnel.silent = false,
                Look::Ask(n) => ctx.send(*connection, Message::Ping(n)),
                Look::Wait => {}
                Look::Suspect => tunnel.silent = true,
            }
        }
        self.watch_at = self.tunnels.values().filter_map(|tunnel| tunnel.dog.poll_timeout()).min();
        let watching = |job: &Job| job.running.as_ref().is_some_and(|running| running.waiting.is_watching());
        let watching: Vec<RequestNumber> =
            self.jobs.iter().filter(|(_, job)| watching(job)).map(|(number, _)| *number).collect();
        for number in watching {
            let suspect = |running: &Running| self.is_suspect(now, running.way.connection);
            if self.jobs.get(&number).and_then(|job| job.running.as_ref()).is_some_and(suspect) {
                let may_leave = self.may_leave(ctx, number);
                let running = self.jobs.get_mut(&number).and_then(|job| job.running.as_mut());
                if let Some(failure) = running.and_then(|running| running.waiting.suspected(may_leave)) {
                    self.abandon(ctx, number, failure);
                }
            }
        }
    }

    fn is_suspect(&self, now: Time, connection: ConnectionId) -> bool {
        self.tunnels.get(&connection).is_none_or(|tunnel| tunnel.is_suspect(now))
    }

    /// Something waits for an answer over this tunnel, or it has failed to answer: it is watched.
    fn watch_over(&mut self, now: Time, connection: ConnectionId) {
        let Some(tunnel) = self.tunnels.get_mut(&connection) else { return };
        let look_at = tunnel.dog.watch(now, tunnel.received);
        self.watch_at = Some(self.watch_at.map_or(look_at, |at| at.min(look_at)));
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
    fn silent(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
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
        if let Some(tunnel) = self.tunnels.get_mut(&connection) {
            tunnel.silent = true;
        }
        self.watch_over(now, connection);
        if let Some(failure) = left {
            self.abandon(ctx, number, failure);
        }
    }

    fn may_leave(&mut self, ctx: &mut Context<'_>, number: RequestNumber) -> bool {
        let now = ctx.now();
        let Some(service) = self.jobs.get(&number).map(|job| job.service) else { return false };
        let ways = self.ways(ctx.settings, service);
        let Some(job) = self.jobs.get(&number).filter(|job| !job.passed_on) else { return false };
        let Some(running) = &job.running else { return false };
        let field = Candidates { ways: &ways, entry: self, service: job.service, now };
        let mut budget = self.budget.clone();
        let may_leave = job.course.may_leave(now, &running.way.node, &field, retry::Body::Replayable, &mut budget);
        self.budget = budget;
        may_leave
    }

    /// The attempt is given up: whoever works on it hears so.
    fn abandon(&mut self, ctx: &mut Context<'_>, number: RequestNumber, failure: Failure) {
        self.cancel_running(ctx, number);
        self.failed(ctx, number, failure);
    }

    fn cancel_running(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
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

    /// Who offers a service, and can be asked from here.
    fn ways(&mut self, settings: &Settings, service: u32) -> Rc<[Way]> {
        self.ways.to(&self.members, &self.registry, &settings.services, service)
    }

    /// Sends a request to whom the balancing picks.
    fn attempt(&mut self, ctx: &mut Context<'_>, number: RequestNumber) {
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

    fn send(&mut self, ctx: &mut Context<'_>, number: RequestNumber, way: Way) {
        let now = ctx.now();
        let Some(job) = self.jobs.get_mut(&number) else { return };
        job.number += 1;
        let (service, attempt, when_full) = (job.service, job.number, job.course.when_full());
        let tunnel = self.tunnels.get_mut(&way.connection);
        let rtt = tunnel.as_ref().map_or(Duration::ZERO, |tunnel| tunnel.rtt);
        let (waiting, rings_after) = Waiting::begin(&job.course, rtt);
        job.running = Some(Running { way, since: now, accepted: false, waiting, rings_at: now + rings_after });
        let load = self.loads.entry((way.node, service));
        load.or_insert(Load { cost: PeakEwma::new(now.since_origin()), in_flight: 0 }).in_flight += 1;
        if let Some(tunnel) = tunnel {
            tunnel.in_flight += 1;
        }
        self.watch_over(now, way.connection);
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
        let penalty = failure.is_penalised();
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
        if let Some(tunnel) = self.tunnels.get_mut(&running.way.connection) {
            tunnel.in_flight = tunnel.in_flight.saturating_sub(1);
        }
    }

    fn give_up(&mut self, ctx: &mut Context<'_>, number: RequestNumber, end: End) {
        self.jobs.remove(&number);
        let ended = match end {
            End::Nobody | End::AllFull { .. } | End::Failed(Outcome::NotRun) => Ended::NotRun,
            End::TimedOut | End::Failed(Outcome::Unknown) => Ended::Unknown,
        };
        ctx.book.ends(ctx.net.now, number, ended);
    }
}
