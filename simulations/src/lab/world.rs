//! The lab itself: namespaces, routers and lines, as the scenario wants them. Dropped, all of it goes.
//!
//! ```text
//!  entry    client      alder            birch, open
//!    │wan      │wan       │eth0                │wan        namespaces
//!    │         │          │lan                 │
//!    │         │        router                 │
//!    │         │          │wan                 │
//!    ╚═════════╧══════════╧════════════════════╧═══        TAP devices, carried between by the wire
//! ```
//!
//! Every home has the same addresses inside, as homes have.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use hedgerow_process::shutdown::{Shutdown, Stage};

use super::fault::Way;
use super::netns::Namespace;
use super::router::{self, Router};
use super::scenario::{Member, Scenario};
use super::segment::{Line, Port};
use super::tap::Tap;
use super::wire::Wire;

/// The device that leads to the segment.
const WAN: &str = "wan";
/// The port of the entry.
const ENTRY: Port = 0;
/// The port of the client.
const CLIENT: Port = 1;
/// The last byte of the entry's address; the others count from it.
const FIRST_ADDRESS: u8 = 10;
/// Parameters of devices that are made from then on: they have no IPv6.
const NO_IPV6: [(&str, &str); 2] = [("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")];
/// They use an address at once: nobody else can have it, and the kernel would ask for a second.
const NO_DETECTION: [(&str, &str); 2] =
    [("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/default/dad_transmits", "0")];
/// How many this process has made: it may have several at once.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// The whole lab.
#[derive(Debug)]
pub(super) struct World {
    // First: the devices go before the namespaces that they are in.
    wire: Wire,
    entry: Namespace,
    client: Namespace,
    homes: Vec<Home>,
}

/// Where one node is.
#[derive(Debug)]
struct Home {
    name: String,
    kind: Router,
    host: Namespace,
    /// From the node outwards; the last one is on the segment.
    routers: Vec<Namespace>,
    rebound: AtomicU32,
}

impl World {
    /// Makes it. Ends early, with an error, when somebody wants it to.
    pub(super) fn build(scenario: &Scenario, seed: u64, shutdown: &Shutdown) -> Result<Self> {
        let members = scenario.members();
        // Where nobody speaks IPv6 it would only be noise on the lines.
        let ipv6 = members.iter().any(|member| member.router == Router::Ipv6Only);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let (entry, client) = (Namespace::new(&format!("{run}-entry"))?, Namespace::new(&format!("{run}-client"))?);
        let mut homes = Vec::new();
        for member in &members {
            anyhow::ensure!(shutdown.stage() == Stage::Running, "stopped");
            homes.push(Home::new(run, member)?);
        }
        let inside = homes.iter().flat_map(|home| std::iter::once(&home.host).chain(&home.routers));
        // A kernel without IPv6 has nothing to be set.
        let kernel_has = Path::new("/proc/sys/net/ipv6").exists();
        for namespace in [&entry, &client].into_iter().chain(inside).filter(|_| ipv6 || kernel_has) {
            namespace.set(if ipv6 { &NO_DETECTION } else { &NO_IPV6 })?;
        }
        let mut ports = Vec::new();
        let lines = [Line::default(); 2].into_iter().chain(members.iter().map(|member| member.line));
        let outermost = [&entry, &client].into_iter().chain(homes.iter().map(Home::outermost));
        for (namespace, line) in outermost.zip(lines) {
            ports.push((Tap::new(namespace, WAN)?, line));
        }
        let wire = Wire::start(ports, seed)?;
        let world = Self { wire, entry, client, homes };
        world.address(&members, ipv6)?;
        Ok(world)
    }

    /// Gives everybody addresses and routes, and routers their rules.
    fn address(&self, members: &[Member], ipv6: bool) -> Result<()> {
        let mut to_homes = String::new();
        for (port, _) in (CLIENT + 1..).zip(members).filter(|(_, member)| member.router == Router::Ipv6Only) {
            writeln!(to_homes, "route add {}/64 via {}", inside_v6(port, 0), address_v6(port))?;
        }
        for (port, namespace) in [(ENTRY, &self.entry), (CLIENT, &self.client)] {
            namespace.ip(&on_the_segment(port, true, ipv6))?;
            namespace.ip(&to_homes)?;
        }
        for (port, home) in (CLIENT + 1..).zip(&self.homes) {
            home.connect(port, ipv6).with_context(|| format!("the home of {}", home.name))?;
            if home.kind == Router::None {
                home.host.ip(&to_homes)?;
            }
        }
        Ok(())
    }

    /// Where clients are.
    pub(super) fn client(&self) -> &Namespace {
        &self.client
    }

    /// Where the entry is.
    pub(super) fn entry(&self) -> &Namespace {
        &self.entry
    }

    /// Where a node is.
    pub(super) fn host(&self, name: &str) -> Result<&Namespace> {
        Ok(&self.home(name)?.1.host)
    }

    /// How many namespaces there are.
    pub(super) fn namespaces(&self) -> usize {
        2 + self.homes.iter().map(|home| 1 + home.routers.len()).sum::<usize>()
    }

    /// The thread that carries the frames.
    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The port of a node, or of the entry.
    pub(super) fn port(&self, name: &str) -> Result<Port> {
        if name == "entry" { Ok(ENTRY) } else { Ok(self.home(name)?.0) }
    }

    /// The router of a node forgets its mappings, and gives new ones other ports.
    pub(super) fn rebind(&self, name: &str) -> Result<()> {
        let home = self.home(name)?.1;
        let rules = home.kind.rebound(home.rebound.fetch_add(1, Ordering::Relaxed));
        home.outermost().run("nft", &["-f", "-"], &rules.unwrap_or_default())?;
        home.outermost().run("conntrack", &["-F"], "")?;
        Ok(())
    }

    /// The connections through the router of a node that there are lose one direction.
    pub(super) fn dig_hole(&self, name: &str, loses: Way) -> Result<()> {
        let router = self.home(name)?.1.outermost();
        // A kernel that cannot mark connections has none of the shorter ways to tell old ones from new ones.
        let listed = router.run("conntrack", &["-L"], "")?;
        router.run("nft", &["-f", "-"], &router::hole(&router::ports(&listed), loses))?;
        Ok(())
    }

    /// And lose nothing any more.
    pub(super) fn fill_hole(&self, name: &str) -> Result<()> {
        self.home(name)?.1.outermost().run("nft", &["-f", "-"], router::NO_HOLE)?;
        Ok(())
    }

    fn home(&self, name: &str) -> Result<(Port, &Home)> {
        let found = (CLIENT + 1..).zip(&self.homes).find(|(_, home)| home.name == name);
        found.with_context(|| format!("nobody is called {name}"))
    }
}

impl Home {
    fn new(run: u32, member: &Member) -> Result<Self> {
        let name = &member.name;
        let labels = match member.router {
            Router::None => &[][..],
            Router::Cgnat => &["router", "carrier"],
            _ => &["router"],
        };
        let host = Namespace::new(&format!("{run}-{name}"))?;
        let router = |label| Namespace::new(&format!("{run}-{name}-{label}"));
        let routers = labels.iter().map(router).collect::<Result<_>>()?;
        Ok(Self { name: name.clone(), kind: member.router, host, routers, rebound: AtomicU32::new(0) })
    }

    /// The namespace that is on the segment.
    fn outermost(&self) -> &Namespace {
        self.routers.last().unwrap_or(&self.host)
    }

    fn connect(&self, port: Port, ipv6: bool) -> Result<()> {
        let v4 = self.kind != Router::Ipv6Only;
        self.outermost().ip(&on_the_segment(port, v4, ipv6))?;
        // From the node outwards: each inside joins the next one's LAN.
        let inside: Vec<&Namespace> = std::iter::once(&self.host).chain(&self.routers).collect();
        for (level, pair) in inside.windows(2).enumerate() {
            let [inner, outer] = pair else { continue };
            let uplink = if level == 0 { "eth0" } else { WAN };
            outer
                .ip(&format!("link add lan type veth peer name {uplink} netns {}\nlink set lan up\n", inner.name()))?;
            inner.ip(&format!("link set {uplink} up\n"))?;
            if v4 {
                // At home, and between a home and its carrier (RFC 6598).
                let [ours, theirs] = [1, 2].map(|host| match level {
                    0 => Ipv4Addr::new(192, 168, 1, host),
                    _ => Ipv4Addr::new(100, 64, 0, host),
                });
                outer.ip(&format!("addr add {ours}/24 dev lan\n"))?;
                inner.ip(&format!("addr add {theirs}/24 dev {uplink}\nroute add default via {ours}\n"))?;
                outer.set(&[("ipv4/ip_forward", "1")])?;
            } else {
                let [ours, theirs] = [1, 2].map(|host| inside_v6(port, host));
                outer.ip(&format!("addr add {ours}/64 dev lan nodad\n"))?;
                inner.ip(&format!("addr add {theirs}/64 dev {uplink} nodad\nroute add default via {ours}\n"))?;
                outer.set(&[("ipv6/conf/all/forwarding", "1")])?;
            }
        }
        for (index, router) in self.routers.iter().enumerate() {
            // What is special about a home is done where it meets the segment; a router at home behind a carrier's is an ordinary one.
            let kind = if index + 1 == self.routers.len() { self.kind } else { Router::Masquerade };
            router.run("nft", &["-f", "-"], &kind.rules())?;
        }
        Ok(())
    }
}

/// The entry's addresses on the segment: one of IPv4, and of IPv6 where somebody speaks nothing else.
pub(super) fn entry_address(v6: bool) -> IpAddr {
    if v6 { address_v6(ENTRY).into() } else { address_v4(ENTRY).into() }
}

/// Lines for `ip`.
fn on_the_segment(port: Port, v4: bool, v6: bool) -> String {
    let mut lines = format!("link set {WAN} up\n");
    if v4 {
        lines += &format!("addr add {}/16 dev {WAN}\n", address_v4(port));
    }
    if v6 {
        lines += &format!("addr add {}/64 dev {WAN} nodad\n", address_v6(port));
    }
    lines
}

fn last_byte(port: Port) -> u8 {
    // There are fewer places than numbers are left.
    FIRST_ADDRESS.saturating_add(u8::try_from(port).unwrap_or(u8::MAX))
}

/// On the segment, each in a /24 of its own: an entry takes who shares one for one network. (RFC 2544: for tests. A node takes it for public,
/// as it should.)
fn address_v4(port: Port) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, last_byte(port), 10)
}

/// On the segment (RFC 3849).
fn address_v6(port: Port) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last_byte(port).into())
}

/// In the home at this port.
fn inside_v6(port: Port, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, last_byte(port).into(), 0, 0, 0, host)
}

#[cfg(test)]
mod tests;
