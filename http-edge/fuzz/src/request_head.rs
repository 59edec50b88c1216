//! Whatever a client says on a connection, to an entry that is all there: what it reads by itself of heads, the HTTP library, and its
//! own endpoints.

use std::cell::LazyCell;
use std::net::SocketAddr;
use std::time::Duration;

use hedgerow_entry::embedded::Embedded;
use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Longer than the entry waits for anything, in a time that does not pass.
const LONG: Duration = Duration::from_secs(3600);
const ROOM: usize = 64 * 1024;
/// No input makes so many answers.
const ANSWER_BYTES_MAX: usize = 16 << 20;

thread_local! {
    static ENTRY: LazyCell<(Runtime, Embedded)> = const {
        LazyCell::new(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
            let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
            let entry = Embedded::new(SecretKey::from_seed([1; 32]), FederationId([1; 32]), 1, Limits::PRODUCTION, nowhere);
            (runtime, entry.expect("an entry"))
        })
    };
}

/// Says it, in pieces of the length that the first byte says, and looks at what comes back.
pub fn request_head(bytes: &[u8]) {
    let Some((piece, said)) = bytes.split_first() else { return };
    let answer = ENTRY.with(|entry| {
        let (runtime, entry) = &**entry;
        let (mut client, server) = tokio::io::duplex(ROOM);
        entry.serve_client(server, SocketAddr::from(([203, 0, 113, 1], 4000)));
        let asking = async {
            let (mut reader, mut writer) = tokio::io::split(&mut client);
            let says = async {
                for piece in said.chunks(usize::from(*piece) + 1) {
                    if writer.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let hears = async {
                let mut answer = Vec::new();
                // To the end, which comes by the entry's time-outs if not before.
                while reader.read_buf(&mut answer).await.is_ok_and(|got| got > 0) && answer.len() < ANSWER_BYTES_MAX {}
                answer
            };
            tokio::join!(says, hears).1
        };
        runtime.block_on(async {
            tokio::select! {
                never = entry.run() => match never {},
                answer = timeout(LONG, asking) => answer.expect("the entry ends every connection"),
            }
        })
    });
    look_at(said, &answer);
}

/// What must be true of any answer.
fn look_at(said: &[u8], answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    assert!(answer.is_empty() || text.starts_with("HTTP/1."), "{said:?} was answered {text:?}");
    assert!(!text.contains("panic"), "{text:?}");
    if is_ambiguous(said) {
        // Malformed, or a target or a head that is too long: nothing that has looked at what the request asks for.
        let refused = answer.is_empty() || matches!(text.get(9..12), Some("400" | "414" | "431"));
        assert!(refused, "two lengths in the first request, and it was answered {text:?}");
        assert!(text.matches("HTTP/1.1 ").count() <= 1, "something behind two lengths was answered: {text:?}");
    }
}

/// Whether the first head has both a `Content-Length` and a `Transfer-Encoding`. Read as simply as can be, to check what is not simple.
fn is_ambiguous(said: &[u8]) -> bool {
    let mut lines = said.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    // Empty lines in front are passed over, and the request line.
    let Some(_) = lines.by_ref().find(|line| !line.is_empty()) else { return false };
    let (mut length, mut encoding) = (false, false);
    for line in lines {
        if line.is_empty() {
            return length && encoding;
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        length |= line.contains(&b':') && name.eq_ignore_ascii_case(b"content-length");
        encoding |= line.contains(&b':') && name.eq_ignore_ascii_case(b"transfer-encoding");
    }
    // No end of the head.
    false
}
