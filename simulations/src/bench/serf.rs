//! serf (HashiCorp's gossip among agents, by SWIM): a cluster of agents on loopback with their defaults, each asked over its RPC port what
//! it hears. Messages there are MessagePack; of what an agent tells only the name that is waited for is looked for.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::gossip::{GIVE_UP_AFTER, Gossips};
use crate::federation::{Lab, READY_WITHIN};
use crate::interop::peers::listening;
use crate::process::{Launch, Process};

/// How often members are counted while the cluster comes together.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// serf's own ports.
const GOSSIP_PORT: u16 = 7946;
const RPC_PORT: u16 = 7373;
/// What an agent calls the end of another one.
const FAILED: &[u8] = b"member-failed";

/// The agents that run.
pub(super) struct Cluster {
    agents: Vec<Agent>,
    said: usize,
}

struct Agent {
    name: String,
    process: Process,
    rpc: SocketAddr,
    /// Where it tells of all that happens; and the last of what it has told.
    stream: TcpStream,
    told: Vec<u8>,
}

impl Cluster {
    /// Starts so many, and waits until each knows all.
    pub(super) async fn start(lab: &Lab, size: usize) -> Result<Self> {
        let mut agents: Vec<Agent> = Vec::new();
        let mut first = None;
        for number in 0..size {
            let name = format!("serf-{size}-{number}");
            let [bind, rpc] = places(number);
            let mut launch = Launch::new(&name, "serf")
                .args(["agent", "-node", &name, "-log-level", "warn"])
                .args([format!("-bind={bind}"), format!("-rpc-addr={rpc}")]);
            if let Some(first) = first {
                launch = launch.arg(format!("-join={first}"));
            }
            first.get_or_insert(bind);
            let process = launch.start(&lab.workdir)?;
            listening(&process, rpc).await?;
            let mut stream = connect(rpc).await?;
            call(&mut stream, "stream", &map(&[("Type", text("*"))])).await?;
            agents.push(Agent { name, process, rpc, stream, told: Vec::new() });
        }
        let cluster = Self { agents, said: 0 };
        let began = Instant::now();
        while cluster.fewest_known().await? < size {
            ensure!(began.elapsed() < READY_WITHIN, "the agents of serf did not find each other");
            sleep(LOOK_AGAIN).await;
        }
        Ok(cluster)
    }

    /// How many members that agent counts that counts the fewest.
    async fn fewest_known(&self) -> Result<usize> {
        let mut fewest = usize::MAX;
        for agent in &self.agents {
            let rpc = format!("-rpc-addr={}", agent.rpc);
            let output = tokio::process::Command::new("serf").args(["members", "-status=alive", &rpc]).output().await?;
            fewest = fewest.min(output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count());
        }
        Ok(fewest)
    }

    /// Asks one agent for something, and waits until all have told of it.
    async fn spread(&mut self, command: &str, body: &[u8], heard: impl Fn(&[u8]) -> bool) -> Result<Duration> {
        let asked = self.said % self.agents.len();
        let mut line = connect(self.agents[asked].rpc).await?;
        self.agents.iter_mut().for_each(|agent| agent.told.clear());
        let began = Instant::now();
        call(&mut line, command, body).await?;
        all_tell(&mut self.agents, heard).await?;
        Ok(began.elapsed())
    }

    /// A change of one agent's tags, which is what it says of itself.
    pub(super) async fn change_tag(&mut self) -> Result<Duration> {
        self.said += 1;
        let value = format!("tag-{:06}", self.said);
        let body = map(&[("Tags", map(&[("now", text(&value))]))]);
        self.spread("tags", &body, |told| holds(told, value.as_bytes())).await
    }
}

impl Gossips for Cluster {
    fn len(&self) -> usize {
        self.agents.len()
    }

    async fn change(&mut self) -> Result<Duration> {
        self.said += 1;
        let name = format!("event-{:06}", self.said);
        let body = map(&[("Name", text(&name)), ("Payload", text("")), ("Coalesce", vec![0xc2])]);
        self.spread("event", &body, |told| holds(told, name.as_bytes())).await
    }

    async fn kill(&mut self) -> Result<Duration> {
        let killed = self.agents.pop().context("nobody is left")?;
        self.agents.iter_mut().for_each(|agent| agent.told.clear());
        let began = Instant::now();
        killed.process.kill();
        let name = killed.name.as_bytes();
        all_tell(&mut self.agents, |told| {
            told.windows(FAILED.len()).position(|part| part == FAILED).is_some_and(|at| holds(&told[at..], name))
        })
        .await?;
        Ok(began.elapsed())
    }
}

/// Where an agent gossips, and where it is asked: at an address of loopback of its own, since a port that was free a moment ago need not be
/// when it begins. Another run at the same time has other addresses.
fn places(number: usize) -> [SocketAddr; 2] {
    let [.., run] = std::process::id().to_be_bytes();
    // There are at most 200.
    let address = Ipv4Addr::new(127, 1 + run % 254, 0, number as u8 + 1);
    [GOSSIP_PORT, RPC_PORT].map(|port| (address, port).into())
}

/// Waits until what each tells since it was last asked is as wanted.
async fn all_tell(agents: &mut [Agent], wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
    let one = async |agent: &mut Agent| {
        while !wanted(&agent.told) {
            let read = agent.stream.read_buf(&mut agent.told).await?;
            ensure!(read > 0, "{} has ended", agent.name);
        }
        Ok(())
    };
    let all = try_join_all(agents.iter_mut().map(one));
    timeout(GIVE_UP_AFTER, all).await.context("not all agents of serf heard of it")?.map(drop)
}

fn holds(told: &[u8], name: &[u8]) -> bool {
    told.windows(name.len()).any(|part| part == name)
}

async fn connect(rpc: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(rpc).await?;
    stream.set_nodelay(true)?;
    call(&mut stream, "handshake", &map(&[("Version", vec![1])])).await?;
    Ok(stream)
}

/// One command, and the beginning of its answer. What went wrong stands there in words, and then what is waited for never comes.
async fn call(stream: &mut TcpStream, command: &str, body: &[u8]) -> Result<()> {
    let mut request = map(&[("Command", text(command)), ("Seq", vec![0])]);
    request.extend_from_slice(body);
    stream.write_all(&request).await?;
    ensure!(stream.read(&mut [0; 256]).await? > 0, "serf does not answer");
    Ok(())
}

/// A map of MessagePack, of few entries.
fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0x80 | entries.len() as u8];
    for (key, value) in entries {
        out.extend(text(key));
        out.extend_from_slice(value);
    }
    out
}

/// A short text of MessagePack.
fn text(text: &str) -> Vec<u8> {
    let mut out = vec![0xa0 | text.len() as u8];
    out.extend_from_slice(text.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_serf_is_message_pack() {
        let asked = map(&[("Command", text("event")), ("Seq", vec![7])]);
        assert_eq!(asked, b"\x82\xa7Command\xa5event\xa3Seq\x07");
    }
}
