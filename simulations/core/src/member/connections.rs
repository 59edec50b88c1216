//! A node's connections: tunnels to entries, the one to its home, and whose each is that ends.

use hedgerow_proto::backoff::Backoff;
use hedgerow_proto::home::seeker;
use hedgerow_proto::liveness::{Beat, PING_INTERVAL, PING_INTERVAL_HOME, PONG_TIMEOUT, Pings};

use super::{AtHome, Member, Tunnel};
use crate::context::Context;
use crate::message::{Link, Message};
use crate::net::ConnectionId;

impl Member {
    pub(super) fn connected(
        &mut self,
        ctx: &mut Context<'_>,
        connection: ConnectionId,
        peer: u32,
        link: Link,
        dialled: bool,
    ) {
        let now = ctx.now();
        match (link, dialled) {
            (Link::Tunnel, true) => {
                let pings = Pings::new(now, PING_INTERVAL, PONG_TIMEOUT);
                self.tunnels.insert(peer, Tunnel::Up { connection, pings });
                let record = self.own_record();
                ctx.send(connection, Message::Join { incarnation: self.incarnation, record });
            }
            (Link::Home, true) => match self.dialling_home.take() {
                Some((index, home)) if index == peer && !self.roles.coordinates() => {
                    let pings = Pings::new(now, PING_INTERVAL_HOME, seeker::PONG_TIMEOUT);
                    self.at_home = Some(AtHome { home, connection, pings });
                    self.seeker.handle(now, seeker::Event::Reached(home), &self.hints);
                    self.drain_seeker(ctx);
                }
                other => {
                    self.dialling_home = other;
                    ctx.close(connection);
                }
            },
            (Link::Home, false) if self.roles.coordinates() => {}
            (Link::Mesh, _) if self.mesh.is_some() => {
                if let Some(mesh) = &mut self.mesh {
                    mesh.connected(ctx, &mut self.core, connection, peer);
                }
            }
            _ => ctx.close(connection),
        }
    }

    pub(super) fn dial_failed(&mut self, ctx: &mut Context<'_>, peer: u32, link: Link) {
        let now = ctx.now();
        match link {
            Link::Tunnel => self.tunnel_down(ctx, peer),
            Link::Home => {
                if let Some((_, home)) = self.dialling_home.take_if(|(index, _)| *index == peer) {
                    self.seeker.handle(now, seeker::Event::NotReached(home), &self.hints);
                    self.drain_seeker(ctx);
                }
            }
            Link::Mesh => {
                if let Some(mesh) = &mut self.mesh {
                    mesh.dial_failed(ctx, &mut self.core, peer);
                }
            }
        }
    }

    pub(super) fn tunnel_down(&mut self, ctx: &mut Context<'_>, entry: u32) {
        let now = ctx.now();
        let pause = self.backoffs.get_mut(&entry).map(Backoff::next_wait).unwrap_or_default();
        self.tunnels.insert(entry, Tunnel::Down { again_at: now + pause });
    }

    /// An entry has taken the tunnel in.
    pub(super) fn welcomed(&mut self, connection: ConnectionId) {
        let is_it = |tunnel: &Tunnel| matches!(tunnel, Tunnel::Up { connection: own, .. } if *own == connection);
        let entry = self.tunnels.iter().find(|(_, tunnel)| is_it(tunnel)).map(|(entry, _)| *entry);
        if let Some(backoff) = entry.and_then(|entry| self.backoffs.get_mut(&entry)) {
            backoff.succeeded();
        }
    }

    pub(super) fn closed(&mut self, ctx: &mut Context<'_>, connection: ConnectionId) {
        let now = ctx.now();
        let tunnel = self.tunnels.iter().find_map(|(entry, tunnel)| match tunnel {
            Tunnel::Up { connection: own, .. } if *own == connection => Some(*entry),
            _ => None,
        });
        if let Some(entry) = tunnel {
            self.sessions.remove(&connection);
            self.tunnel_down(ctx, entry);
            self.drop_work_of(ctx, connection);
            return;
        }
        if let Some(at_home) = self.at_home.take_if(|at_home| at_home.connection == connection) {
            self.drop_work_of(ctx, connection);
            self.seeker.handle(now, seeker::Event::Ended(at_home.home), &self.hints);
            self.drain_seeker(ctx);
            return;
        }
        if let Some((id, worker)) = self.roster_ids.remove(&connection) {
            self.break_relays(ctx, connection);
            self.roster.ended(now, worker, id);
            self.drain_roster(ctx);
            return;
        }
        if let Some(mesh) = &mut self.mesh {
            mesh.closed(ctx, &mut self.core, connection);
        }
    }

    pub(super) fn look_at_tunnels(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        let mut given_up = Vec::new();
        for (entry, tunnel) in &mut self.tunnels {
            match tunnel {
                Tunnel::Down { again_at, .. } if *again_at <= now && !self.draining => {
                    *tunnel = Tunnel::Dialling;
                    ctx.dial(*entry, Link::Tunnel);
                }
                Tunnel::Up { connection, pings } => match pings.beat(now) {
                    Some(Beat::Ping(n)) => ctx.send(*connection, Message::Ping(n)),
                    Some(Beat::GiveUp) => given_up.push((*entry, *connection)),
                    None => {}
                },
                Tunnel::Down { .. } | Tunnel::Dialling => {}
            }
        }
        for (entry, connection) in given_up {
            ctx.close(connection);
            self.sessions.remove(&connection);
            self.drop_work_of(ctx, connection);
            self.tunnel_down(ctx, entry);
        }
    }

    pub(super) fn look_at_home(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now();
        let Some(at_home) = &mut self.at_home else { return };
        match at_home.pings.beat(now) {
            Some(Beat::Ping(n)) => ctx.send(at_home.connection, Message::Ping(n)),
            Some(Beat::GiveUp) => {
                let (home, connection) = (at_home.home, at_home.connection);
                self.at_home = None;
                ctx.close(connection);
                self.drop_work_of(ctx, connection);
                self.seeker.handle(now, seeker::Event::Ended(home), &self.hints);
                self.drain_seeker(ctx);
            }
            None => {}
        }
    }

    pub(super) fn pong(&mut self, ctx: &mut Context<'_>, connection: ConnectionId) {
        let now = ctx.now();
        for tunnel in self.tunnels.values_mut() {
            if let Tunnel::Up { connection: own, pings } = tunnel
                && *own == connection
            {
                return pings.answered();
            }
        }
        if let Some(at_home) = self.at_home.as_mut().filter(|at_home| at_home.connection == connection) {
            at_home.pings.answered();
            let home = at_home.home;
            self.seeker.handle(now, seeker::Event::Pong(home), &self.hints);
            self.drain_seeker(ctx);
        }
    }
}
