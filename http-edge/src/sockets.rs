//! The sockets of all threads, bound before anything is served: each thread has its own on the same port (SO_REUSEPORT), and
//! the kernel deals connections out between them.
//!
//! SO_REUSEPORT would also let a second process of the same user share the port, and take half of the traffic without a
//! word. So the first socket of each port is bound without it, which fails when anybody else has the port; only then is
//! the port opened to the other threads.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use hedgerow_process::exit::Failure;
use hedgerow_tunnel::quic::{self, Sharing};
use hedgerow_tunnel::tuning::UDP_BUFFER_BYTES;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tracing::warn;

use crate::settings::Settings;

/// The sockets of one thread.
pub(crate) struct ShardSockets {
    pub(crate) http: Vec<TcpListener>,
    pub(crate) tunnel: UdpSocket,
    /// The first thread alone has one.
    pub(crate) admin: Option<TcpListener>,
}

/// Where it all ended up: port 0 has become a port.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) tunnel: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
}

/// Connections that the kernel holds until they are accepted; it cuts the wish to its own limit.
const BACKLOG: i32 = 4096;
/// A client that is gone without a word is noticed after about two minutes, also where nothing is sent.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Binds everything for all threads.
pub(crate) fn bind(settings: &Settings) -> Result<(Bound, Vec<ShardSockets>), Failure> {
    let mut bound = Bound { http: Vec::new(), tunnel: settings.tunnel_listen, admin: None };
    let mut shards = Vec::with_capacity(settings.threads);
    for index in 0..settings.threads {
        let first = index == 0;
        let sharing = if first { Sharing::First } else { Sharing::Further };
        let mut http = Vec::new();
        for place in 0..settings.listen.len() {
            let address = if first { settings.listen[place] } else { bound.http[place] };
            let family = Family::of(address, &settings.listen);
            let listener = tcp(address, family, sharing).map_err(|error| cannot("--listen", address, "TCP", &error))?;
            if first {
                bound.http.push(local(listener.local_addr())?);
            }
            http.push(listener);
        }
        let (tunnel, granted) = quic::bind(bound.tunnel, sharing)
            .map_err(|error| cannot("--tunnel-listen", bound.tunnel, "UDP", &error))?;
        let mut admin = None;
        if first {
            bound.tunnel = local(tunnel.local_addr())?;
            warn_of_small_buffers(granted);
            if let Some(address) = settings.admin_listen {
                let listener = tcp(address, Family::Both, Sharing::Alone)
                    .map_err(|error| cannot("--admin-listen", address, "TCP", &error))?;
                bound.admin = Some(local(listener.local_addr())?);
                admin = Some(listener);
            }
        }
        shards.push(ShardSockets { http, tunnel, admin });
    }
    Ok((bound, shards))
}

/// Who is heard at an IPv6 wildcard address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Everybody, as with the tunnels.
    Both,
    /// IPv6 alone, since IPv4 has an address of its own on the port.
    Own,
}

impl Family {
    fn of(address: SocketAddr, all: &[SocketAddr]) -> Self {
        let shared = all.iter().any(|other| other.is_ipv4() && other.port() == address.port() && other.port() != 0);
        if shared { Self::Own } else { Self::Both }
    }
}

fn tcp(address: SocketAddr, family: Family, sharing: Sharing) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(family == Family::Own)?;
    }
    // An entry that was just stopped leaves connections in TIME_WAIT; they are no reason to wait. A listener is.
    socket.set_reuse_address(true)?;
    if sharing == Sharing::Further {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if sharing == Sharing::First {
        socket.set_reuse_port(true)?;
    }
    // Accepted connections inherit these.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn local(address: io::Result<SocketAddr>) -> Result<SocketAddr, Failure> {
    address.map_err(|error| Failure::runtime(format!("a socket does not tell its address: {error}")))
}

fn cannot(flag: &str, address: SocketAddr, protocol: &str, error: &io::Error) -> Failure {
    let failure = |what: &str| Failure::runtime(format!("cannot listen on {address} ({protocol}, {flag}): {what}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => failure("another process has this port")
            .means("the entry did not start")
            .advice(format!(
                "stop the other one (`ss -tulpn 'sport = :{}'` shows it), or give {flag} another port; port 0 takes a free one",
                address.port()
            )),
        io::ErrorKind::PermissionDenied => failure("this user may not")
            .means("the entry did not start")
            .advice("take a port above 1023, or give the program the capability CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=)"),
        io::ErrorKind::AddrNotAvailable => failure("this machine does not have the address")
            .means("the entry did not start")
            .advice("give an address of this machine, or 0.0.0.0 for all of them"),
        _ => failure(&error.to_string()).means("the entry did not start"),
    }
}

fn warn_of_small_buffers(granted: usize) {
    if granted < UDP_BUFFER_BYTES {
        warn!(
            granted_bytes = granted,
            wanted_bytes = UDP_BUFFER_BYTES,
            "the kernel gives the tunnels small UDP buffers, which costs a seventh of the throughput; \
             raise them with: sysctl -w net.core.rmem_max={UDP_BUFFER_BYTES} net.core.wmem_max={UDP_BUFFER_BYTES}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn threads_share_a_port_and_other_processes_do_not() {
        let first = tcp(ANYWHERE, Family::Both, Sharing::First).unwrap();
        let address = first.local_addr().unwrap();
        let _second = tcp(address, Family::Both, Sharing::Further).unwrap();
        // What another entry would do first.
        assert_eq!(tcp(address, Family::Both, Sharing::First).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(tcp(address, Family::Both, Sharing::Alone).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn both_wildcards_may_stand_side_by_side() {
        let four = tcp(([0, 0, 0, 0], 0).into(), Family::Both, Sharing::First).unwrap().local_addr().unwrap();
        let taken = tcp(four, Family::Both, Sharing::Further).unwrap();
        let six = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), taken.local_addr().unwrap().port());
        assert!(tcp(six, Family::of(six, &[four, six]), Sharing::First).is_ok());
        assert_eq!(Family::of(six, &[six]), Family::Both);
    }

    #[test]
    fn a_port_in_use_says_what_to_do() {
        let failure = cannot("--listen", ANYWHERE, "TCP", &io::ErrorKind::AddrInUse.into());
        assert_eq!(failure.code(), 1);
        assert!(failure.to_string().contains("--listen another port"), "{failure}");
    }
}
