//! How it stands with a better way, for people.

use std::fmt;

use super::{Appoints, Hole, PUNCHES_MAX, Peer, Standing};
use crate::appointment::Unable;

/// Why an attempt has come to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing came through.
    Unanswered,
    /// The peer did not answer the question.
    NoAnswer,
    /// The peer would not, or could not.
    Refused(Unable),
    /// The peer named no address that this node could send to.
    NoCommonAddress,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered => f.write_str("nothing came through"),
            Self::NoAnswer => f.write_str("it did not answer"),
            Self::Refused(unable) => unable.fmt(f),
            Self::NoCommonAddress => f.write_str("it has no address that can be reached from here"),
        }
    }
}

/// How it stands with a better way to a peer that is connected by way of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// The peer is of a version that punches no holes, or listens nowhere.
    NotSpoken,
    /// No entry that sees this node's datagrams: it goes by TCP to all of them, or does not listen over QUIC.
    NoDatagrams,
    /// No entry has answered a datagram of where this node listens.
    Unseen,
    /// This node's datagrams come from another port for each destination.
    Symmetric,
    /// Nothing has been tried yet.
    Untried,
    /// A hole is being punched.
    Punching,
    /// So often in vain.
    InVain {
        /// How often.
        times: u8,
        /// The last time.
        last: Why,
        /// Whether it is over.
        rests: bool,
    },
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSpoken => f.write_str("it punches no holes"),
            Self::NoDatagrams => f.write_str("no hole can be punched: nobody sees datagrams of this node's"),
            Self::Unseen => f.write_str("no hole can be punched: no entry answers this node's datagrams"),
            Self::Symmetric => f.write_str("no hole can be punched: this node is behind a symmetric NAT"),
            Self::Untried => f.write_str("no hole punched yet"),
            Self::Punching => f.write_str("a hole is being punched"),
            Self::InVain { times, last, rests } => {
                let often = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
                write!(f, "hole punching tried {often}, last: {last}")?;
                if *rests { f.write_str("; given up until an address changes") } else { Ok(()) }
            }
        }
    }
}

pub(super) fn of(peer: &Peer, standing: &Standing) -> Outlook {
    if peer.appoints == Appoints::No {
        return Outlook::NotSpoken;
    }
    match standing {
        Standing::NoObserver => return Outlook::NoDatagrams,
        Standing::Unseen => return Outlook::Unseen,
        Standing::Symmetric => return Outlook::Symmetric,
        Standing::Unknown | Standing::At(_) => {}
    }
    if peer.hole != Hole::None {
        return Outlook::Punching;
    }
    match peer.punch.last {
        Some(last) => {
            let hopeless = matches!(last, Why::Refused(Unable::NoAddress | Unable::Symmetric));
            let rests = peer.punch.times >= PUNCHES_MAX || hopeless;
            Outlook::InVain { times: peer.punch.times, last, rests }
        }
        None => Outlook::Untried,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlook_says_what_was_tried_and_why_no_more() {
        let vain = |times, last, rests| Outlook::InVain { times, last, rests }.to_string();
        assert_eq!(vain(1, Why::Unanswered, false), "hole punching tried once, last: nothing came through");
        assert_eq!(
            vain(3, Why::Unanswered, true),
            "hole punching tried 3 times, last: nothing came through; given up until an address changes"
        );
        assert_eq!(
            vain(1, Why::Refused(Unable::Symmetric), true),
            "hole punching tried once, last: it is behind a symmetric NAT; given up until an address changes"
        );
    }
}
