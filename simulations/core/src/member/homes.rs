//! Homes, from both sides: what the seeker and the roster say is done.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::home::Told;
use hedgerow_proto::home::roster::{self, told_of};
use hedgerow_proto::home::seeker;
use hedgerow_proto::record::Body;
use hedgerow_proto::registry::Source;

use super::Member;
use crate::context::Context;
use crate::message::{Link, Message};
use crate::net::ConnectionId;
use crate::settings::Settings;
use crate::verify;

impl Member {
    pub(super) fn hear_of_coordinators(&mut self, ctx: &mut Context<'_>, records: Vec<Vec<u8>>) {
        let now = ctx.now();
        let told = records.iter().filter_map(|bytes| {
            Told::of(verify::open(Bytes::copy_from_slice(bytes), &ctx.settings.limits).ok()?.record())
        });
        if self.hints.learn(told.collect::<Vec<_>>()) && !self.roles.coordinates() {
            self.seeker.handle(now, seeker::Event::Heard, &self.hints);
            self.drain_seeker(ctx);
        }
        if self.roles.coordinates() {
            for record in records {
                // One that is not taken is not known: others are.
                drop(self.core.insert_if(now, record.into(), Source::Passed(Duration::ZERO), |_, _| Ok::<(), ()>(())));
            }
        }
    }

    pub(super) fn take_in(&mut self, ctx: &mut Context<'_>, connection: ConnectionId, record: Bytes) {
        let opened = verify::open(record, &ctx.settings.limits);
        let Ok(signed) = opened else { return ctx.close(connection) };
        let worker = signed.writer();
        if !self.roles.coordinates() || self.roster.admit(&worker, signed.record()).is_err() {
            ctx.send(connection, Message::Reject { newer: None });
            return ctx.close(connection);
        }
        self.next_roster_id += 1;
        if self.roster.arrived(self.next_roster_id, connection, signed.clone(), signed.record()) {
            self.roster_ids.insert(connection, (self.next_roster_id, worker));
            ctx.send(connection, Message::Welcome);
        } else {
            ctx.close(connection);
        }
        self.drain_roster(ctx);
    }

    pub(super) fn drain_roster(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        while let Some(output) = self.roster.poll_output() {
            match output {
                roster::Output::Meet(worker) => self.core.meet(now, worker),
                roster::Output::Part(worker) => self.core.part(now, worker),
                roster::Output::Take(signed) => {
                    // A worker whose record finds no room is served over its tunnel all the same.
                    let bytes = signed.bytes().clone();
                    drop(self.core.insert_if(now, bytes, Source::Direct(None), |_, _| Ok::<(), ()>(())));
                }
                roster::Output::Say(attachment) => {
                    drop(self.core.say(now, Body::Attachment(attachment)));
                }
                roster::Output::Tell(connection) => {
                    let told = told_of(&self.core.node(), self.core.registry());
                    if !told.is_empty() {
                        ctx.send(connection, Message::Coordinators(told));
                    }
                }
                roster::Output::Close { connection, .. } => {
                    self.roster_ids.remove(&connection);
                    self.break_relays(ctx, connection);
                    ctx.close(connection);
                }
            }
        }
    }

    pub(super) fn drain_seeker(&mut self, ctx: &mut Context<'_>) {
        while let Some(output) = self.seeker.poll_output() {
            let now = ctx.now();
            match output {
                seeker::Output::Connect { home, addresses } => {
                    match addresses.iter().find_map(|address| Settings::node_at(address)) {
                        Some(index) => {
                            self.dialling_home = Some((index, home));
                            ctx.dial(index, Link::Home);
                        }
                        None => self.seeker.handle(now, seeker::Event::NotReached(home), &self.hints),
                    }
                }
                seeker::Output::GiveUp(_) => self.dialling_home = None,
                seeker::Output::Join(home) => {
                    self.home = Some(home);
                    self.announce(ctx);
                    // The home must not get the record before it is asked to take it.
                    let at_home = self.at_home.take();
                    self.drain_events(ctx);
                    self.at_home = at_home;
                    if let Some(at_home) = &self.at_home {
                        let record = self.own_record();
                        ctx.send(at_home.connection, Message::Join { incarnation: self.incarnation, record });
                    }
                }
                seeker::Output::Settled(_) => {}
                seeker::Output::Leave(_) => {
                    if let Some(at_home) = self.at_home.take() {
                        ctx.close(at_home.connection);
                    }
                }
            }
        }
    }
}
