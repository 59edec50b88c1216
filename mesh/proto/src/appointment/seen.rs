//! How an entry says from where a datagram came: in words, since they travel as the reason for which it ends a handshake, and arrive
//! as the text of an error.

use std::net::SocketAddr;

/// What stands in front of the address.
const MARK: &str = "hedgerow-seen-from=";
/// The longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 64;

/// The entry's words.
pub fn say(from: SocketAddr) -> String {
    // A socket for both families sees IPv4 addresses as mapped ones.
    format!("{MARK}{}", SocketAddr::new(from.ip().to_canonical(), from.port()))
}

/// The address in a text that may hold such words.
pub fn hear(text: &str) -> Option<SocketAddr> {
    let (_, said) = text.split_once(MARK)?;
    let end = said.find(|letter: char| !letter.is_ascii_hexdigit() && !".:[]".contains(letter)).unwrap_or(said.len());
    said.get(..end).filter(|address| address.len() <= ADDRESS_BYTES_MAX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_entry_says_is_heard_in_the_text_of_an_error() {
        for (from, heard) in [
            ("192.0.2.7:4001", "192.0.2.7:4001"),
            ("[2001:db8::7]:4001", "[2001:db8::7]:4001"),
            ("[::ffff:192.0.2.7]:4001", "192.0.2.7:4001"),
        ] {
            let text = format!("aborted by peer: error 120: {})", say(from.parse().unwrap()));
            assert_eq!(hear(&text), Some(heard.parse().unwrap()));
        }
        let long = format!("{MARK}{}", "1".repeat(1000));
        for nothing in ["", "timed out", MARK, "hedgerow-seen-from=here", "hedgerow-seen-from=1.2.3.4", &long] {
            assert_eq!(hear(nothing), None, "{nothing}");
        }
    }
}
