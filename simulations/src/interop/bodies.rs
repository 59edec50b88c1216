//! Bodies, targets and statuses arrive as they were sent.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::{Check, must, peers};
use crate::client::{ask, get, post, request};
use crate::federation::{Lab, NodeSpec};
use crate::service::{Kind, hex};

/// A server on Python's own `http.server` that knows what the stock one does not.
const PYTHON_SERVER: &str = include_str!("../../peers/server.py");

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("bodies", "bodies, methods, targets and statuses arrive as they were sent", &[], ours),
        Check::new(
            "bodies-python",
            "a Python service gets and gives bodies, targets, ranges and statuses unchanged",
            &["python3"],
            python,
        ),
    ]
}

async fn ours(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 16), &entry).await?;

    let large: Bytes = (0..16_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let digest = ask(entry.http, post("/service/kit/digest", large.clone())).await?;
    must!(digest.json()["sha256"] == hex(&Sha256::digest(&large)), "16 MiB arrived as {}", digest.summary());
    let back = ask(entry.http, post("/service/kit/echo", large.clone())).await?;
    must!(back.body == large, "16 MiB came back changed: {} bytes", back.body.len());
    let every_byte: Bytes = (0..=255).collect();
    let echoed = ask(entry.http, post("/service/kit/echo", every_byte.clone())).await?;
    must!(echoed.body == every_byte, "all 256 byte values came back as {:?}", echoed.body);

    for target in ["/head?q=%2F%26%20+%C3%A4&y=a%3Db", "/head?", "/head?a[]=1&b=%zz"] {
        for prefix in ["/service/kit".to_owned(), "/api/service/kit".to_owned(), format!("/service/~{}/kit", worker.id)]
        {
            let seen = entry.get(&format!("{prefix}{target}")).await?.json();
            must!(seen["target"] == target, "the target {target} under {prefix} arrived as {}", seen["target"]);
        }
    }
    let not_found = entry.get("/service/kit/a%2Fb%20c/%E2%82%AC").await?;
    must!(not_found.text().contains("/a%2Fb%20c/%E2%82%AC"), "an encoded path arrived as {}", not_found.summary());
    for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let seen = ask(entry.http, request(method, "/service/kit/head", Bytes::new())).await?;
        // A browser's preflight is the entry's to answer; an OPTIONS without an Origin is the service's.
        must!(seen.json()["method"] == method, "{method} arrived as {}", seen.summary());
    }
    for status in [200, 204, 301, 304, 400, 401, 403, 404, 409, 418, 429, 500, 502, 503] {
        let answer = entry.get(&format!("/service/kit/status/{status}")).await?;
        must!(answer.status == status, "a {status} came as {}", answer.summary());
        let bare = matches!(status, 204 | 304);
        must!(bare || answer.text() == format!("{status} as asked\n"), "the body of {status}: {}", answer.summary());
    }

    let mut asked = get("/service/kit/head");
    for (name, value) in [("x-request-id", "from-the-client"), ("x-forwarded-for", "6.6.6.6"), ("x-own", "kept")] {
        asked.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let answer = ask(entry.http, asked).await?;
    let seen = answer.text();
    must!(seen.contains("kept"), "a header of the client was lost: {seen}");
    must!(!seen.contains("6.6.6.6"), "a forged X-Forwarded-For was passed on: {seen}");
    must!(
        answer.header("x-request-id") == "from-the-client",
        "the request id became {:?}",
        answer.header("x-request-id")
    );
    must!(answer.header("x-hedgerow-served-by") == worker.id, "served by {:?}", answer.header("x-hedgerow-served-by"));
    Ok("16 MiB there and back, 256 byte values, 9 odd targets, 5 methods, 14 statuses".to_owned())
}

async fn python(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let peer = peers::python_script(&lab, "python", PYTHON_SERVER).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("py", peer.listen, 16), &entry).await?;

    let large: Bytes = (0..16_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let digest = ask(entry.http, post("/service/py/digest", large.clone())).await?;
    must!(digest.text() == hex(&Sha256::digest(&large)), "16 MiB arrived at Python as {}", digest.summary());
    let target = "/target?q=%2F%26%20+%C3%A4";
    let seen = entry.get(&format!("/service/py{target}")).await?;
    must!(seen.text() == target, "Python saw {}", seen.summary());
    let mut asked = get("/service/py/range");
    asked.headers_mut().insert(HeaderName::from_static("range"), HeaderValue::from_static("bytes=3-7"));
    let part = ask(entry.http, asked).await?;
    must!(part.status == 206 && part.text() == "34567", "a range of Python's came as {}", part.summary());
    let failure = entry.get("/service/py/fail").await?;
    must!(
        failure.status == 500 && failure.text() == "it failed, as asked",
        "Python's 500 came as {}",
        failure.summary()
    );
    let chunked = entry.get("/service/py/chunked").await?;
    must!(chunked.text() == "one two three", "a chunked answer of Python's came as {}", chunked.summary());
    for _ in 0..50 {
        let kept = entry.get("/service/py/target").await?;
        must!(kept.status == 200, "a connection that Python closes as it likes gave {}", kept.summary());
    }
    Ok("16 MiB, a range, a 500, chunks and an encoded query arrive unchanged".to_owned())
}
