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
//! Every home has the same addresses inside, as homes have. Nodes that share a LAN are at one bridge of one router.

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

/// Where a node is, or several that share a LAN.
#[derive(Debug)]
struct Home {
    kind: Router,
    line: Line,
    lan: Option<String>,
    /// At least one, each with its name.
    hosts: Vec<(String, Namespace)>,
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
        let mut homes: Vec<Home> = Vec::new();
        for member in &members {
            anyhow::ensure!(shutdown.stage() == Stage::Running, "stopped");
            match homes.iter_mut().find(|home| home.lan.is_some() && home.lan == member.lan) {
                Some(home) => home.hosts.push(host(run, member)?),
                None => homes.push(Home::new(run, member)?),
            }
        }
        let inside = homes.iter().flat_map(|home| home.hosts().chain(&home.routers));
        // A kernel without IPv6 has nothing to be set.
        let kernel_has = Path::new("/proc/sys/net/ipv6").exists();
        for namespace in [&entry, &client].into_iter().chain(inside).filter(|_| ipv6 || kernel_has) {
            namespace.set(if ipv6 { &NO_DETECTION } else { &NO_IPV6 })?;
        }
        let mut ports = Vec::new();
        let lines = [Line::default(); 2].into_iter().chain(homes.iter().map(|home| home.line));
        let outermost = [&entry, &client].into_iter().chain(homes.iter().map(Home::outermost));
        for (namespace, line) in outermost.zip(lines) {
            ports.push((Tap::new(namespace, WAN)?, line));
        }
        let wire = Wire::start(ports, seed)?;
        let world = Self { wire, entry, client, homes };
        world.address(ipv6)?;
        Ok(world)
    }

    /// Gives everybody addresses and routes, and routers their rules.
    fn address(&self, ipv6: bool) -> Result<()> {
        let mut to_homes = String::new();
        for (port, _) in (CLIENT + 1..).zip(&self.homes).filter(|(_, home)| home.kind == Router::Ipv6Only) {
            writeln!(to_homes, "route add {}/64 via {}", inside_v6(port, 0), address_v6(port))?;
        }
        for (port, namespace) in [(ENTRY, &self.entry), (CLIENT, &self.client)] {
            namespace.ip(&on_the_segment(port, true, ipv6))?;
            namespace.ip(&to_homes)?;
        }
        for (port, home) in (CLIENT + 1..).zip(&self.homes) {
            home.connect(port, ipv6).with_context(|| format!("the home of {}", home.names().join(", ")))?;
            if home.kind == Router::None {
                home.outermost().ip(&to_homes)?;
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
        let mut hosts = self.home(name)?.1.hosts.iter();
        let found = hosts.find(|(called, _)| called == name);
        Ok(&found.with_context(|| format!("nobody is called {name}"))?.1)
    }

    /// How many namespaces there are.
    pub(super) fn namespaces(&self) -> usize {
        2 + self.homes.iter().map(|home| home.hosts.len() + home.routers.len()).sum::<usize>()
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
        let found = (CLIENT + 1..).zip(&self.homes).find(|(_, home)| home.names().contains(&name));
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
        let router = |label| Namespace::new(&format!("{run}-{name}-{label}"));
        let routers = labels.iter().map(router).collect::<Result<_>>()?;
        let hosts = vec![host(run, member)?];
        let (kind, line, lan) = (member.router, member.line, member.lan.clone());
        Ok(Self { kind, line, lan, hosts, routers, rebound: AtomicU32::new(0) })
    }

    fn hosts(&self) -> impl Iterator<Item = &Namespace> {
        self.hosts.iter().map(|(_, host)| host)
    }

    fn names(&self) -> Vec<&str> {
        self.hosts.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The namespace that is on the segment.
    fn outermost(&self) -> &Namespace {
        self.routers.last().unwrap_or(&self.hosts[0].1)
    }

    fn connect(&self, port: Port, ipv6: bool) -> Result<()> {
        let v4 = self.kind != Router::Ipv6Only;
        self.outermost().ip(&on_the_segment(port, v4, ipv6))?;
        let Some((first, further)) = self.routers.split_first() else { return Ok(()) };
        // From the nodes outwards: each inside joins the next one's LAN.
        let hosts: Vec<&Namespace> = self.hosts().collect();
        self.join(&hosts, "eth0", first, |host| Ipv4Addr::new(192, 168, 1, host), port)?;
        for (inner, outer) in self.routers.iter().zip(further) {
            // Between a home and its carrier (RFC 6598).
            self.join(&[inner], WAN, outer, |host| Ipv4Addr::new(100, 64, 0, host), port)?;
        }
        for (index, router) in self.routers.iter().enumerate() {
            // What is special about a home is done where it meets the segment; a router at home behind a carrier's is an ordinary one.
            let kind = if index + 1 == self.routers.len() { self.kind } else { Router::Masquerade };
            router.run("nft", &["-f", "-"], &kind.rules())?;
        }
        Ok(())
    }

    /// Connects these, by devices of that name, to the LAN of a router, which has the first address there.
    fn join(
        &self,
        inner: &[&Namespace],
        uplink: &str,
        outer: &Namespace,
        address: impl Fn(u8) -> Ipv4Addr,
        port: Port,
    ) -> Result<()> {
        let v4 = self.kind != Router::Ipv6Only;
        if inner.len() > 1 {
            outer.ip("link add lan type bridge\nlink set lan up\n")?;
        }
        for (index, inside) in inner.iter().enumerate() {
            let name = inside.name();
            outer.ip(&match inner.len() {
                1 => format!("link add lan type veth peer name {uplink} netns {name}\nlink set lan up\n"),
                _ => format!(
                    "link add lan{index} type veth peer name {uplink} netns {name}\nlink set lan{index} master lan up\n"
                ),
            })?;
            inside.ip(&format!("link set {uplink} up\n"))?;
        }
        // There are fewer places than addresses.
        let hosts = (2..=u8::MAX).zip(inner);
        if v4 {
            let ours = address(1);
            outer.ip(&format!("addr add {ours}/24 dev lan\n"))?;
            for (host, inside) in hosts {
                let theirs = address(host);
                inside.ip(&format!("addr add {theirs}/24 dev {uplink}\nroute add default via {ours}\n"))?;
            }
            outer.set(&[("ipv4/ip_forward", "1")])
        } else {
            let ours = inside_v6(port, 1);
            outer.ip(&format!("addr add {ours}/64 dev lan nodad\n"))?;
            for (host, inside) in hosts {
                let theirs = inside_v6(port, host.into());
                inside.ip(&format!("addr add {theirs}/64 dev {uplink} nodad\nroute add default via {ours}\n"))?;
            }
            outer.set(&[("ipv6/conf/all/forwarding", "1")])
        }
    }
}

/// The namespace of a node, with its name.
fn host(run: u32, member: &Member) -> Result<(String, Namespace)> {
    Ok((member.name.clone(), Namespace::new(&format!("{run}-{}", member.name))?))
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
