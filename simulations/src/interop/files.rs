//! File servers of others behind workers: Python's `http.server`, which speaks HTTP/1.0 and knows no ranges, and nginx, which
//! knows everything.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::{Check, must, peers};
use crate::client::{Answer, ask, get, post, request};
use crate::federation::{Entry, Lab, NodeSpec};
use crate::service::hex;

/// Size of the large file: more than any buffer on the way.
const LARGE_BYTES: usize = 64 << 20;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "files-python",
            "Python's http.server behind two workers serves files as it does by itself",
            &["python3"],
            python,
        ),
        Check::new(
            "files-ranges",
            "ranges, conditions and a 64 MiB file of nginx arrive as nginx sends them",
            &["nginx"],
            nginx,
        ),
    ]
}

/// A small file, a large one, and the hash of that.
fn make_files(directory: &Path) -> Result<String> {
    std::fs::create_dir_all(directory.join("a folder"))?;
    std::fs::write(directory.join("small.txt"), "a small file\n")?;
    std::fs::write(directory.join("a folder/ä+b.txt"), "a name that needs encoding\n")?;
    let large = large_bytes();
    let hash = hex(&Sha256::digest(&large));
    std::fs::write(directory.join("large.bin"), large)?;
    Ok(hash)
}

/// Bytes in which every misplaced piece is seen: a counter, scrambled.
fn large_bytes() -> Vec<u8> {
    (0..LARGE_BYTES as u64 / 8).flat_map(|count| count.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

async fn python(lab: Arc<Lab>) -> Result<String> {
    let directory = lab.workdir.path().join("files");
    let hash = make_files(&directory)?;
    let entry = lab.entry("entry", &[]).await?;
    let peers = [
        peers::python_files(&lab, "python-1", &directory).await?,
        peers::python_files(&lab, "python-2", &directory).await?,
    ];
    let one = lab.node(NodeSpec::worker("worker-1").offers("files", peers[0].listen, 16), &entry).await?;
    let two = lab.node(NodeSpec::worker("worker-2").offers("files", peers[1].listen, 16), &entry).await?;

    let mut servers = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let answer = entry.get("/service/files/small.txt").await?;
        must!(answer.status == 200 && answer.text() == "a small file\n", "a small file came as {}", answer.summary());
        servers.insert(answer.header("x-hedgerow-served-by").to_owned());
    }
    must!(servers.len() == 2, "forty requests were all served by {servers:?}, not by both {} and {}", one.id, two.id);

    let direct = ask(peers[0].listen, get("/small.txt")).await?;
    let through = entry.get("/service/files/small.txt").await?;
    for header in ["content-type", "content-length", "last-modified"] {
        must!(direct.header(header) == through.header(header), "{header} became {:?}", through.header(header));
    }
    let listing = entry.get("/service/files/").await?;
    must!(listing.text().contains("large.bin"), "the listing came as {}", listing.summary());
    let encoded = entry.get("/service/files/a%20folder/%C3%A4%2Bb.txt?x=%2F%26y").await?;
    must!(encoded.text() == "a name that needs encoding\n", "an encoded name came as {}", encoded.summary());

    let head = ask(entry.http, request("HEAD", "/service/files/large.bin", Bytes::new())).await?;
    must!(head.status == 200 && head.body.is_empty(), "HEAD came as {}", head.summary());
    must!(head.header("content-length") == LARGE_BYTES.to_string(), "HEAD said {:?}", head.headers.get(CONTENT_LENGTH));
    let missing = entry.get("/service/files/missing").await?;
    must!(missing.status == 404 && missing.text().contains("File not found"), "a 404 came as {}", missing.summary());
    let refused = ask(entry.http, post("/service/files/small.txt", "x")).await?;
    must!(refused.status == 501, "Python's 501 to a POST came as {}", refused.summary());
    let ignored = ranged(&entry, "/service/files/small.txt", "bytes=2-6").await?;
    must!(ignored.status == 200, "a Range that Python ignores came as {}", ignored.summary());
    let redirect = entry.get("/service/files/a%20folder").await?;
    must!(redirect.status == 301, "a redirect came as {}", redirect.summary());

    let large = entry.get("/service/files/large.bin").await?;
    must!(hex(&Sha256::digest(&large.body)) == hash, "the 64 MiB file arrived changed ({} bytes)", large.body.len());
    Ok("files, HEAD, 404, 501, redirect as they are; 64 MiB arrived with its SHA-256; both workers served".to_owned())
}

async fn nginx(lab: Arc<Lab>) -> Result<String> {
    let directory = lab.workdir.path().join("files");
    let hash = make_files(&directory)?;
    let server = format!("server {{ listen 127.0.0.1:PORT; root {}; }}", directory.display());
    let peer = peers::nginx(&lab, "nginx", &server, 1).await?;
    let entry = lab.entry("entry", &[]).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("files", peer.listen, 16), &entry).await?;

    let part = ranged(&entry, "/service/files/small.txt", "bytes=2-6").await?;
    must!(part.status == 206 && part.text() == "small", "a range came as {}", part.summary());
    must!(part.header("content-range") == "bytes 2-6/13", "Content-Range was {:?}", part.header("content-range"));
    let parts = ranged(&entry, "/service/files/small.txt", "bytes=0-0,8-11").await?;
    must!(parts.header("content-type").starts_with("multipart/byteranges"), "two ranges came as {}", parts.summary());
    let beyond = ranged(&entry, "/service/files/small.txt", "bytes=100-").await?;
    must!(
        beyond.status == 416 && beyond.header("content-range") == "bytes */13",
        "a bad range came as {}",
        beyond.summary()
    );
    let etag = entry.get("/service/files/small.txt").await?.header("etag").to_owned();
    let unchanged = with_header(&entry, "/service/files/small.txt", "if-none-match", &etag).await?;
    must!(unchanged.status == 304 && unchanged.body.is_empty(), "a 304 came as {}", unchanged.summary());

    let mut assembled = Vec::with_capacity(LARGE_BYTES);
    let quarter = LARGE_BYTES / 4;
    for begin in (0..LARGE_BYTES).step_by(quarter) {
        let range = format!("bytes={begin}-{}", begin + quarter - 1);
        assembled.extend_from_slice(&ranged(&entry, "/service/files/large.bin", &range).await?.body);
    }
    must!(hex(&Sha256::digest(&assembled)) == hash, "64 MiB in four ranges arrived changed");
    Ok("206, multipart, 416, 304 as they are; 64 MiB in four ranges arrived with its SHA-256".to_owned())
}

async fn ranged(entry: &Entry, target: &str, range: &str) -> Result<Answer> {
    with_header(entry, target, "range", range).await
}

async fn with_header(entry: &Entry, target: &str, name: &'static str, value: &str) -> Result<Answer> {
    let mut asked = get(target);
    asked.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
    ask(entry.http, asked).await
}
