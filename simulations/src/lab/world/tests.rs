//! The routers and lines of a lab are what they are called: else its scenarios would prove nothing. Passed over where there can be no lab.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hedgerow_process::shutdown::Shutdown;

use super::super::needs::missing;
use super::*;

/// Of one that does not come. All lines here are short.
const NOTHING_WITHIN: Duration = Duration::from_millis(300);
/// Of one that does, on a busy machine.
const COMES_WITHIN: Duration = Duration::from_secs(10);

/// A lab with one node behind each kind of router, named after it.
fn world(line: &str) -> Option<World> {
    if let Some(missing) = missing() {
        crate::terminal::say(format!("passed over: {missing}"));
        return None;
    }
    let kinds = ["none", "masquerade", "symmetric", "cgnat", "udp-blocked", "https-only", "ipv6-only"];
    let node = |kind| format!("[[node]]\nname = \"{kind}\"\nrole = \"worker\"\nrouter = \"{kind}\"\n");
    let nodes: String = kinds.map(node).concat();
    let text = format!("about = \"a test\"\nduration = \"1s\"\nline = {line}\n{nodes}[must]\n");
    let scenario = Scenario::parse("test.toml", &text).unwrap();
    Some(World::build(&scenario, 1, &Shutdown::new()).unwrap())
}

fn udp(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
    let socket = namespace.within(|| Ok(UdpSocket::bind(address)?)).unwrap();
    socket.set_read_timeout(Some(COMES_WITHIN)).unwrap();
    socket
}

fn tcp(namespace: &Namespace, address: SocketAddr) -> TcpListener {
    namespace.within(|| Ok(TcpListener::bind(address)?)).unwrap()
}

/// Whether a connection from there comes about.
fn connects(from: &Namespace, to: SocketAddr) -> bool {
    from.within(|| Ok(TcpStream::connect_timeout(&to, NOTHING_WITHIN)?)).is_ok()
}

/// What a node sends from port 40000 to each of these: how its address looks there. None if it does not arrive.
fn seen(world: &World, name: &str, at: &[&UdpSocket]) -> Vec<Option<SocketAddr>> {
    let host = udp(world.host(name).unwrap(), "0.0.0.0:40000".parse().unwrap());
    let one = |there: &&UdpSocket| {
        host.send_to(name.as_bytes(), there.local_addr().ok()?).ok()?;
        there.set_read_timeout(Some(NOTHING_WITHIN)).ok()?;
        let mut buffer = [0; 64];
        let (length, from) = there.recv_from(&mut buffer).ok()?;
        assert_eq!(&buffer[..length], name.as_bytes());
        Some(from)
    };
    at.iter().map(one).collect()
}

#[test]
fn each_router_maps_and_filters_as_its_kind_says() {
    let Some(world) = world("{}") else { return };
    let at_entry = udp(&world.entry, (address_v4(ENTRY), 5000).into());
    let at_client = udp(&world.client, (address_v4(CLIENT), 5000).into());
    let stranger = udp(&world.client, (address_v4(CLIENT), 5001).into());

    for name in ["masquerade", "cgnat"] {
        let seen = seen(&world, name, &[&at_entry, &at_client]);
        let outside = SocketAddr::from((address_v4(world.port(name).unwrap()), 40000));
        assert_eq!(seen, [Some(outside); 2], "{name}: the mapping does not depend on who is asked");
        // Filtering by address and port: whoever was asked may answer, and nobody else.
        let host = udp(world.host(name).unwrap(), "0.0.0.0:40001".parse().unwrap());
        host.send_to(b"a question", at_client.local_addr().unwrap()).unwrap();
        let (_, outside) = at_client.recv_from(&mut [0; 64]).unwrap();
        stranger.send_to(b"who?", outside).unwrap();
        at_client.send_to(b"an answer", outside).unwrap();
        let mut buffer = [0; 64];
        let (length, _) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"an answer", "{name}");
    }

    let symmetric = seen(&world, "symmetric", &[&at_entry, &at_client]);
    let [Some(first), Some(second)] = symmetric[..] else { panic!("UDP does not go out: {symmetric:?}") };
    assert_ne!(first.port(), second.port(), "the mapping depends on who is asked");

    for name in ["udp-blocked", "https-only", "ipv6-only"] {
        assert_eq!(seen(&world, name, &[&at_entry]), [None], "{name}");
    }
}

#[test]
fn only_what_a_firewall_lets_through_goes_out_and_nothing_comes_in() {
    let Some(world) = world("{}") else { return };
    let https = SocketAddr::from((entry_address(false), 443));
    let other = SocketAddr::from((entry_address(false), 8443));
    let over_v6 = SocketAddr::from((entry_address(true), 443));
    let _listening = [https, other, over_v6].map(|address| tcp(&world.entry, address));
    for (name, goes) in [
        ("none", [true, true, true]),
        ("masquerade", [true, true, false]),
        ("cgnat", [true, true, false]),
        ("udp-blocked", [true, true, false]),
        ("https-only", [true, false, false]),
        ("ipv6-only", [false, false, true]),
    ] {
        let host = world.host(name).unwrap();
        assert_eq!([https, other, over_v6].map(|to| connects(host, to)), goes, "{name}");
    }
    for name in ["none", "masquerade", "cgnat", "https-only"] {
        let _inside = tcp(world.host(name).unwrap(), "0.0.0.0:7777".parse().unwrap());
        let outside = SocketAddr::from((address_v4(world.port(name).unwrap()), 7777));
        assert_eq!(connects(&world.client, outside), name == "none", "{name} from outside");
    }
}

#[test]
fn a_line_is_as_long_as_it_is_asked_to_be_and_cuts_and_rebindings_are_felt() {
    let Some(world) = world("{ delay = \"30ms\" }") else { return };
    let (name, mut buffer) = ("masquerade", [0; 64]);
    let at_entry = udp(&world.entry, (address_v4(ENTRY), 5000).into());
    let host = udp(world.host(name).unwrap(), "0.0.0.0:40000".parse().unwrap());
    let mut ask = |within: Duration| {
        host.send_to(b"ping", at_entry.local_addr().ok()?).ok()?;
        let begin = Instant::now();
        at_entry.set_read_timeout(Some(within)).ok()?;
        let (_, from) = at_entry.recv_from(&mut buffer).ok()?;
        Some((begin.elapsed(), from))
    };
    // The first one also asks for addresses, in both namespaces.
    ask(COMES_WITHIN).unwrap();
    let (took, before) = ask(COMES_WITHIN).unwrap();
    assert!(took >= Duration::from_millis(30), "{took:?}");

    world.rebind(name).unwrap();
    let (_, after) = ask(COMES_WITHIN).unwrap();
    assert_ne!(before, after);
    world.rebind(name).unwrap();
    assert_ne!(ask(COMES_WITHIN).unwrap().1, after);

    world.dig_hole(name, Way::Sent).unwrap();
    assert_eq!(ask(NOTHING_WITHIN), None, "it lost nothing");
    let fresh = udp(world.host(name).unwrap(), "0.0.0.0:40002".parse().unwrap());
    fresh.send_to(b"ping", at_entry.local_addr().unwrap()).unwrap();
    at_entry.set_read_timeout(Some(COMES_WITHIN)).unwrap();
    at_entry.recv_from(&mut [0; 64]).unwrap();
    world.fill_hole(name).unwrap();
    ask(COMES_WITHIN).unwrap();

    let cut = world.wire().cut(super::super::segment::Cut::From(world.port(name).unwrap()));
    assert_eq!(ask(NOTHING_WITHIN), None);
    world.wire().mend(cut);
    ask(COMES_WITHIN).unwrap();
}
