//! What travels along a line, told by its headers, so that a figure of bytes can say what they were for.

use std::fmt;

/// Kinds of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// UDP from or to the entry's port: tunnels over QUIC.
    Tunnel,
    /// TCP from or to the entry's port: bootstraps, and all that goes over HTTP.
    Http,
    /// Any other UDP: the mesh over QUIC.
    Udp,
    /// Any other TCP: the mesh over TCP, homes among it.
    Tcp,
    /// Who has which address, and the like.
    Other,
}

/// All of them.
pub(super) const KINDS: [Kind; 5] = [Kind::Tunnel, Kind::Http, Kind::Udp, Kind::Tcp, Kind::Other];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "tunnels",
            Self::Http => "HTTP of the entry",
            Self::Udp => "other UDP",
            Self::Tcp => "other TCP",
            Self::Other => "other",
        })
    }
}

/// Destination and source address, then the type.
const TYPE_AT: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;

impl Kind {
    /// What this frame is. (Options of IPv6, which nobody here uses, make it "other".)
    pub(super) fn of(frame: &[u8], entry_port: u16) -> Self {
        Self::by_headers(frame, entry_port).unwrap_or(Self::Other)
    }

    fn by_headers(frame: &[u8], entry_port: u16) -> Option<Self> {
        let packet = frame.get(TYPE_AT + 2..)?;
        let (protocol, header_bytes) = match frame.get(TYPE_AT..TYPE_AT + 2)? {
            kind if kind == IPV4 => (*packet.get(9)?, usize::from(packet.first()? & 0x0f) * 4),
            kind if kind == IPV6 => (*packet.get(6)?, 40),
            _ => return None,
        };
        let port = |at: usize| {
            let bytes = packet.get(header_bytes + at..header_bytes + at + 2)?;
            Some(u16::from_be_bytes(bytes.try_into().ok()?))
        };
        let entry = port(0)? == entry_port || port(2)? == entry_port;
        match (protocol, entry) {
            (UDP, true) => Some(Self::Tunnel),
            (UDP, false) => Some(Self::Udp),
            (TCP, true) => Some(Self::Http),
            (TCP, false) => Some(Self::Tcp),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: [u8; 2], protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; TYPE_AT];
        frame.extend(kind);
        let mut packet = vec![0; if kind == IPV4 { 24 } else { 40 }];
        packet[if kind == IPV4 { 9 } else { 6 }] = protocol;
        // One option makes the header of IPv4 24 bytes long.
        packet[0] = if kind == IPV4 { 0x46 } else { 0x60 };
        frame.extend(packet);
        frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        frame
    }

    #[test]
    fn frames_are_told_apart_by_protocol_and_port() {
        for kind in [IPV4, IPV6] {
            assert_eq!(Kind::of(&frame(kind, UDP, [40_000, 443]), 443), Kind::Tunnel);
            assert_eq!(Kind::of(&frame(kind, TCP, [443, 40_000]), 443), Kind::Http);
            assert_eq!(Kind::of(&frame(kind, UDP, [40_000, 40_001]), 443), Kind::Udp);
            assert_eq!(Kind::of(&frame(kind, TCP, [40_000, 40_001]), 443), Kind::Tcp);
            assert_eq!(Kind::of(&frame(kind, 1, [443, 443]), 443), Kind::Other);
        }
        assert_eq!(Kind::of(&frame([0x08, 0x06], UDP, [443, 443]), 443), Kind::Other);
    }

    #[test]
    fn a_frame_that_ends_too_soon_is_another_kind() {
        let whole = frame(IPV4, UDP, [40_000, 443]);
        for length in 0..whole.len() {
            assert_eq!(Kind::of(&whole[..length], 443), Kind::Other, "{length}");
        }
    }
}
