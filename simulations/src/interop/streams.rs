//! What does not end with its head: events, WebSockets, clients that leave, readers that are slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::{Check, must};
use crate::client::{begin, get};
use crate::federation::{Lab, NodeSpec};
use crate::process::Process;
use crate::service::Kind;
use crate::terminal::human;

/// "At once", on a machine that is busy with other things.
const AT_ONCE: Duration = Duration::from_secs(2);
/// By how much a slow reader may make a process grow.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("events", "server-sent events reach curl one by one, as they happen", &["curl"], events),
        Check::new("websocket", "a WebSocket echoes texts, megabytes and closes", &[], websocket),
        Check::new(
            "websocket-python",
            "a WebSocket client in Python is echoed to, pinged and closed",
            &["python3"],
            websocket_python,
        ),
        Check::new("disconnect", "a client that leaves cancels its request at the service at once", &[], disconnect),
        Check::new(
            "slow-reader",
            "a reader of 10 KB/s on 256 MiB makes neither entry nor node grow by more than 8 MiB",
            &[],
            slow_reader,
        ),
    ]
}

async fn events(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let service = lab.service("events", Kind::Events).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("events", service.listen, 4), &entry).await?;
    let mut curl = tokio::process::Command::new("curl")
        .args(["-sSN", "--max-time", "60", &format!("{}/service/events/?every=100&count=20", entry.url())])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("curl does not start")?;
    let mut lines = BufReader::new(curl.stdout.take().context("curl has no output")?).lines();
    let (mut arrivals, mut text) = (Vec::new(), Vec::new());
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("data: ") {
            arrivals.push(Instant::now());
            text.push(line);
        }
    }
    let status = curl.wait().await?;
    must!(status.success(), "curl ended with {status}");
    must!(text.len() == 20 && text[19].starts_with("data: tick 19 of"), "curl got {text:?}");
    let spread = arrivals[19] - arrivals[0];
    must!(
        spread > Duration::from_millis(1500),
        "twenty events 100 ms apart arrived within {spread:?}: they were held back"
    );
    Ok(format!("20 events, 100 ms apart at the service, arrived over {}", human(spread)))
}

async fn websocket(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 4), &entry).await?;
    let url = format!("ws://{}/service/kit/ws", entry.http);
    let stream = TcpStream::connect(entry.http).await?;
    let (mut socket, _) = tokio_tungstenite::client_async(&url, stream).await.context("no WebSocket")?;
    let large = Message::binary((0..1_u32 << 20).map(|index| (index % 251) as u8).collect::<Vec<_>>());
    let mut messages: Vec<_> = (0..200).map(|number| Message::text(format!("message {number}"))).collect();
    messages.push(large);
    for message in &messages {
        socket.send(message.clone()).await?;
        let echo = socket.next().await.context("the WebSocket ended")??;
        must!(echo == *message, "an echo that is none, of {} bytes", echo.len());
    }
    must!(kit.evidence().await?.running == 1, "the WebSocket holds no slot at the service");
    socket.close(None).await?;
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
    let (took, _) = kit.until(AT_ONCE, |evidence| evidence.running == 0).await?;

    let stream = TcpStream::connect(entry.http).await?;
    let (socket, _) = tokio_tungstenite::client_async(&url, stream).await?;
    kit.until(AT_ONCE, |evidence| evidence.running == 1).await?;
    drop(socket);
    let (dropped, _) = kit.until(AT_ONCE, |evidence| evidence.running == 0).await.context("a dropped WebSocket")?;
    Ok(format!("201 echoes up to 1 MiB; closed at the service {} after, dropped {} after", human(took), human(dropped)))
}

async fn websocket_python(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 4), &entry).await?;
    let output = tokio::process::Command::new("python3")
        .args(["-c", include_str!("../../peers/websocket_client.py"), "127.0.0.1", &entry.http.port().to_string()])
        .arg("/service/kit/ws")
        .kill_on_drop(true)
        .output()
        .await?;
    must!(output.status.success(), "Python's client said {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn disconnect(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let _worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 4), &entry).await?;

    // While it waits for the head of the answer.
    let mut waiting = TcpStream::connect(entry.http).await?;
    waiting.write_all(b"GET /service/kit/slow?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    kit.until(AT_ONCE, |evidence| evidence.running == 1).await?;
    drop(waiting);
    let (head, _) = kit.until(AT_ONCE, |evidence| evidence.cancelled == 1).await.context("before the head")?;

    // While the answer streams.
    let mut stream = begin(entry.http, get("/service/kit/events")).await?;
    stream.body_mut().frame().await.context("no event came")??;
    drop(stream);
    let (body, _) = kit.until(AT_ONCE, |evidence| evidence.cancelled == 2).await.context("in the answer's body")?;

    // While it sends.
    let mut sending = TcpStream::connect(entry.http).await?;
    sending.write_all(b"POST /service/kit/digest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegin").await?;
    kit.until(AT_ONCE, |evidence| evidence.running == 1).await?;
    drop(sending);
    let (sent, evidence) =
        kit.until(AT_ONCE, |evidence| evidence.running == 0).await.context("in the request's body")?;
    must!(evidence.started == 3, "three requests became {} at the service", evidence.started);
    Ok(format!(
        "seen at the service after {} before the head, {} in the answer, {} in the upload",
        human(head),
        human(body),
        human(sent)
    ))
}

async fn slow_reader(lab: Arc<Lab>) -> Result<String> {
    let entry = lab.entry("entry", &[]).await?;
    let kit = lab.service("kit", Kind::Kit).await?;
    let worker = lab.node(NodeSpec::worker("worker").offers("kit", kit.listen, 4), &entry).await?;
    // What the first requests allocate for good is not growth.
    for _ in 0..3 {
        must!(entry.get("/service/kit/bytes?n=8388608").await?.body.len() == 8 << 20, "a body was cut short");
    }
    let memory = |process: &Process| anyhow::Ok(process.usage()?.resident_bytes);
    let before = (memory(&entry.process)?, memory(&worker.process)?);
    let mut slow = TcpStream::connect(entry.http).await?;
    slow.write_all(b"GET /service/kit/bytes?n=268435456 HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut growth = (0, 0);
    let mut piece = [0; 1000];
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..60 {
        ticks.tick().await;
        slow.read_exact(&mut piece).await.context("the slow reader was cut off")?;
        growth.0 = growth.0.max(memory(&entry.process)?.saturating_sub(before.0));
        growth.1 = growth.1.max(memory(&worker.process)?.saturating_sub(before.1));
    }
    must!(growth.0 <= GROWTH_BYTES_MAX, "the entry grew by {} KiB", growth.0 / 1024);
    must!(growth.1 <= GROWTH_BYTES_MAX, "the node grew by {} KiB", growth.1 / 1024);
    // Others are served meanwhile.
    let other = entry.get("/service/kit/hello").await?;
    must!(other.status == 200, "while one read slowly another got {}", other.summary());
    drop(slow);
    kit.until(AT_ONCE, |evidence| evidence.running == 0).await.map_err(|error| anyhow!("after it left: {error}"))?;
    Ok(format!("after 6 s the entry had grown by {} KiB, the node by {} KiB", growth.0 / 1024, growth.1 / 1024))
}
