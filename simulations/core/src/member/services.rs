//! What a node does with requests: for its own services, and for those of workers that are at home with it.

use std::collections::BTreeMap;
use std::time::Duration;

use hedgerow_proto::frame::{Refusal, WhenFull};
use hedgerow_sim_model::random;

use super::{LINE_MAX, Member, Relay, TAIL, Wanted, Work};
use crate::context::Context;
use crate::message::{Message, RequestNumber};
use crate::net::{ConnectionId, Input};

impl Member {
    /// Whoever asked is gone: what was being worked on for it is dropped.
    pub(super) fn drop_work_of(&mut self, ctx: &mut Context<'_>, connection: ConnectionId) {
        let gone: Vec<_> =
            self.work.iter().filter(|(_, work)| work.connection == connection).map(|(k, _)| *k).collect();
        for key in gone {
            self.release(key);
        }
        self.line.retain(|(_, work)| work.connection != connection);
        let relays: Vec<_> = self.relayed.extract_if(.., |_, relay| relay.from == connection).collect();
        for ((request, attempt), relay) in relays {
            ctx.send(relay.to, Message::Cancel { request, attempt });
        }
    }

    pub(super) fn release(&mut self, key: (RequestNumber, u32)) -> Option<Work> {
        let work = self.work.remove(&key)?;
        if let Some(in_flight) = self.in_flight.get_mut(&work.service) {
            *in_flight = in_flight.saturating_sub(1);
        }
        Some(work)
    }

    /// A request for a service here, or for one of a worker that is at home here.
    pub(super) fn open(
        &mut self,
        ctx: &mut Context<'_>,
        connection: ConnectionId,
        key: (RequestNumber, u32),
        wanted: Wanted,
    ) {
        let (request, attempt) = key;
        let Wanted { service, waits, via } = wanted;
        let refuse = |refusal| Message::Refuse { request, attempt, refusal };
        if let Some(worker) = via {
            return match self.roster.connection(&worker).copied() {
                Some(to) => {
                    self.relayed.insert(key, Relay { from: connection, to });
                    ctx.send(to, Message::Open { request, service, attempt, waits, via: None });
                }
                None => ctx.send(connection, refuse(Refusal::UnknownService)),
            };
        }
        if self.draining {
            return ctx.send(connection, refuse(Refusal::Draining));
        }
        if !self.nature.services.contains(&service) {
            return ctx.send(connection, refuse(Refusal::UnknownService));
        }
        let in_flight = self.in_flight.entry(service).or_default();
        if *in_flight < ctx.settings.capacity {
            *in_flight += 1;
            self.work_on(ctx, key, Work { service, connection });
        } else if waits && self.line.len() < LINE_MAX {
            self.line.push_back((key, Work { service, connection }));
            ctx.after(WhenFull::IN_LINE_MAX, Input::LineOver { request, attempt });
        } else {
            ctx.send(connection, refuse(Refusal::Full));
        }
    }

    pub(super) fn work_on(&mut self, ctx: &mut Context<'_>, key: (RequestNumber, u32), work: Work) {
        let (request, attempt) = key;
        self.work.insert(key, work);
        ctx.book.runs(ctx.net.now, request, ctx.me);
        ctx.send(work.connection, Message::Accept { request, attempt });
        let mean = ctx.settings.load.service_time.0.as_secs_f64();
        let takes = Duration::from_secs_f64(random::exponential(&mut self.random, mean));
        ctx.after(takes, Input::Served { request, attempt, whole: false });
        ctx.after(takes.mul_f64(1.0 + TAIL), Input::Served { request, attempt, whole: true });
    }

    /// A slot is free: whoever stands in line for it longest gets it.
    pub(super) fn next_in_line(&mut self, ctx: &mut Context<'_>) {
        let capacity = ctx.settings.capacity;
        let free = |service: &u32, in_flight: &BTreeMap<u32, u32>| in_flight.get(service).is_none_or(|n| *n < capacity);
        while let Some(at) = self.line.iter().position(|(_, work)| free(&work.service, &self.in_flight)) {
            let Some((key, work)) = self.line.remove(at) else { return };
            *self.in_flight.entry(work.service).or_default() += 1;
            self.work_on(ctx, key, work);
        }
    }

    pub(super) fn line_over(&mut self, ctx: &mut Context<'_>, key: (RequestNumber, u32)) {
        if let Some(at) = self.line.iter().position(|(other, _)| *other == key)
            && let Some((_, work)) = self.line.remove(at)
        {
            ctx.send(work.connection, Message::Refuse { request: key.0, attempt: key.1, refusal: Refusal::Full });
        }
    }

    pub(super) fn served(&mut self, ctx: &mut Context<'_>, request: RequestNumber, attempt: u32, whole: bool) {
        if whole {
            if let Some(work) = self.release((request, attempt)) {
                ctx.send(work.connection, Message::End { request, attempt });
            }
        } else if let Some(work) = self.work.get(&(request, attempt)) {
            ctx.send(work.connection, Message::Begin { request, attempt });
        }
    }

    pub(super) fn cancelled(&mut self, ctx: &mut Context<'_>, key: (RequestNumber, u32)) {
        self.release(key);
        self.line.retain(|(other, _)| *other != key);
        if let Some(relay) = self.relayed.remove(&key) {
            ctx.send(relay.to, Message::Cancel { request: key.0, attempt: key.1 });
        }
    }

    /// A worker at home here is gone: whoever waits for its answers hears that they will not come.
    pub(super) fn break_relays(&mut self, ctx: &mut Context<'_>, connection: ConnectionId) {
        let relays: Vec<_> = self.relayed.extract_if(.., |_, relay| relay.to == connection).collect();
        for ((request, attempt), relay) in relays {
            ctx.send(relay.from, Message::Broke { request, attempt });
        }
    }
}
