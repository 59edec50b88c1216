//! What a running node says of itself: as JSON for programs, as text for people. Durations, never times of day: nobody's
//! clock matters.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod hardware;
mod mesh;

pub use hardware::{GpuStatus, HardwareStatus};
pub use mesh::{MeshStatus, PeerStatus};

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's key, 64 hexadecimal digits.
    pub node_id: String,
    /// The version of its software.
    pub version: String,
    /// `worker`, `coordinator` or `both`.
    pub role: String,
    /// Where its operator says that it is.
    pub location: String,
    /// What it runs on; older versions do not say.
    #[serde(default)]
    pub hardware: Option<HardwareStatus>,
    /// Its process.
    pub pid: u32,
    /// Where its key is.
    pub data_dir: String,
    /// How long it has been running, in milliseconds.
    pub uptime_ms: u64,
    /// Whether it is leaving.
    pub stage: Stage,
    /// Where it serves on the LAN.
    pub listen: Option<String>,
    /// The multiaddrs at which other coordinators can dial it.
    #[serde(default)]
    pub mesh_listen: Vec<String>,
    /// Its part on the mesh, one for each federation.
    #[serde(default)]
    pub mesh: Vec<MeshStatus>,
    /// Requests taken since it started.
    pub requests: u64,
    /// Requests running now.
    pub requests_running: u32,
    /// In order of URL.
    pub entries: Vec<EntryStatus>,
    /// In order of name.
    pub services: Vec<ServiceStatus>,
}

/// Whether a node is leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// No.
    Running,
    /// Yes: it takes nothing new.
    Draining,
}

/// How one entry is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryStatus {
    /// As its operator wrote it.
    pub url: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its key, once known.
    pub entry_id: Option<String>,
    /// Its federation, once known.
    pub federation: Option<String>,
    /// How its tunnel is.
    pub state: TunnelStage,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// Round-trip time in milliseconds, while it is up.
    pub rtt_ms: Option<f64>,
    /// Connections to it, while it is up.
    pub connections: Option<u16>,
    /// This node's own address as the entry sees it, while it is up.
    pub observed: Option<String>,
    /// What carries it, while it is up: `quic` or `tcp`. Older versions do not say.
    #[serde(default)]
    pub transport: Option<String>,
    /// Where that is not QUIC: why not.
    #[serde(default)]
    pub why_not_quic: Option<String>,
    /// What is wrong, if something is.
    pub error: Option<String>,
    /// When it is dialled again, in milliseconds.
    pub retry_in_ms: Option<u64>,
    /// Failures in a row.
    pub failures: u32,
}

/// How a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelStage {
    /// Requests can come.
    Up,
    /// On the way.
    Connecting,
    /// It failed and is dialled again soon.
    Waiting,
    /// The entry does not take this node.
    Rejected,
    /// The entry has not answered yet.
    Unreachable,
    /// The node has left.
    Left,
}

impl TunnelStage {
    fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Connecting => "connecting",
            Self::Waiting => "waiting",
            Self::Rejected => "rejected",
            Self::Unreachable => "unreachable",
            Self::Left => "left",
        }
    }
}

/// How one service is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its public name.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// Whether its probe succeeds.
    pub up: bool,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// What its probe has found, while it is down.
    pub error: Option<String>,
    /// Requests it takes at once.
    pub capacity: u32,
    /// Requests running now.
    pub in_use: u32,
    /// Requests taken since the node started.
    pub requests: u64,
    /// Requests refused because all slots were taken.
    pub refused_full: u64,
    /// Requests refused because it took no connection.
    pub refused_down: u64,
}

/// One line of the answer to `leave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LeaveProgress {
    /// It has said that it leaves, and this many requests still run.
    Draining {
        /// How many.
        running: u32,
    },
    /// Nothing ran any more: it ends.
    Left,
    /// It ends, and cuts these requests off.
    Cut {
        /// How many.
        running: u32,
    },
}

impl Status {
    /// For people.
    pub fn for_people(&self) -> String {
        let mut out = String::new();
        let stage = match self.stage {
            Stage::Running => "",
            Stage::Draining => ", leaving",
        };
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "{} {}{stage}", self.role, self.node_id);
        let uptime = in_words(self.uptime_ms);
        let _ = writeln!(out, "  hedgerow-node {}, process {}, running for {uptime}", self.version, self.pid);
        let _ = writeln!(out, "  data in {}", self.data_dir);
        if !self.location.is_empty() {
            let _ = writeln!(out, "  located at {}", self.location);
        }
        if let Some(hardware) = &self.hardware {
            let _ = writeln!(out, "  {hardware}");
        }
        if let Some(listen) = &self.listen {
            let _ = writeln!(out, "  serving its own services on http://{listen}");
        }
        for address in &self.mesh_listen {
            let _ = writeln!(out, "  listening for coordinators on {address}");
        }
        for mesh in &self.mesh {
            let _ = writeln!(out, "  {mesh}");
        }
        let _ = writeln!(out, "  {} taken, {} running", plural(self.requests, "request"), self.requests_running);
        let _ = writeln!(out, "\n{}", self.entries_table());
        if self.services.is_empty() {
            let _ = writeln!(out, "No services: this node offers nothing.");
        } else {
            let _ = writeln!(out, "{}", self.services_table());
        }
        for (entry, why) in self.entries.iter().filter_map(|entry| Some((entry, entry.why_not_quic.as_ref()?))) {
            let _ = writeln!(out, "{}: over TCP, since {why}; QUIC is tried again now and then", entry.url);
        }
        for mesh in self.mesh.iter().filter(|mesh| !mesh.peers.is_empty()) {
            let _ = writeln!(out, "{}", mesh.peers_table());
        }
        for (what, error) in self.troubles() {
            let _ = writeln!(out, "{what}: {error}");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    fn entries_table(&self) -> String {
        let rows = self.entries.iter().map(|entry| {
            let rtt = entry.rtt_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default();
            let more = match (entry.connections, entry.retry_in_ms) {
                (Some(connections), _) => plural(connections.into(), "connection"),
                (None, Some(ms)) => format!("next try in {}", in_words(ms)),
                (None, None) => String::new(),
            };
            let via = entry.transport.clone().unwrap_or_default();
            vec![entry.url.clone(), entry.state.word().into(), in_words(entry.for_ms), via, rtt, more]
        });
        table(&["ENTRY", "TUNNEL", "FOR", "VIA", "RTT", ""], rows)
    }

    fn services_table(&self) -> String {
        let rows = self.services.iter().map(|service| {
            let health = if service.up { "up" } else { "down" };
            let slots = format!("{} of {}", service.in_use, service.capacity);
            let refused = service.refused_full + service.refused_down;
            vec![
                service.name.clone(),
                health.into(),
                in_words(service.for_ms),
                slots,
                service.requests.to_string(),
                refused.to_string(),
                service.url.clone(),
            ]
        });
        table(&["SERVICE", "HEALTH", "FOR", "BUSY", "REQUESTS", "REFUSED", "AT"], rows)
    }

    fn troubles(&self) -> impl Iterator<Item = (String, &String)> {
        let entries = self.entries.iter().filter_map(|entry| Some((entry.url.clone(), entry.error.as_ref()?)));
        let services = self
            .services
            .iter()
            .filter_map(|service| Some((format!("service {}", service.name), service.error.as_ref()?)));
        entries.chain(services)
    }
}

fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// `950 ms`, `12 s`, `3 min 4 s`, `2 h 5 min`, `4 d 3 h`.
fn in_words(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> =
        std::iter::once(head.iter().map(|cell| (*cell).to_owned()).collect()).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        for (ms, words) in [
            (950, "950 ms"),
            (12_400, "12 s"),
            (184_000, "3 min 4 s"),
            (7_500_000, "2 h 5 min"),
            (356_400_000, "4 d 3 h"),
        ] {
            assert_eq!(in_words(ms), words);
        }
    }

    #[test]
    fn a_person_sees_what_is_wrong() {
        let status = Status {
            node_id: "ab".repeat(32),
            version: "0.1.0".into(),
            role: "worker".into(),
            location: "Vienna".into(),
            hardware: Some(HardwareStatus {
                worker_type: "cpu".into(),
                cpu_cores: 4,
                memory_mib: 8192,
                storage_gib: 100,
                gpu: None,
            }),
            pid: 7,
            data_dir: "/data".into(),
            uptime_ms: 61_000,
            stage: Stage::Running,
            mesh_listen: vec!["/ip4/192.168.1.5/udp/4001/quic-v1".into()],
            mesh: vec![],
            listen: None,
            requests: 1,
            requests_running: 0,
            entries: vec![EntryStatus {
                url: "https://example.org".into(),
                addresses: vec![],
                entry_id: None,
                federation: None,
                state: TunnelStage::Unreachable,
                for_ms: 5_000,
                rtt_ms: None,
                connections: None,
                observed: None,
                transport: None,
                why_not_quic: None,
                error: Some("connection refused".into()),
                retry_in_ms: None,
                failures: 0,
            }],
            services: vec![ServiceStatus {
                name: "notes".into(),
                url: "http://127.0.0.1:1".into(),
                up: true,
                for_ms: 5_000,
                error: None,
                capacity: 2,
                in_use: 1,
                requests: 1,
                refused_full: 3,
                refused_down: 0,
            }],
        };
        let text = status.for_people();
        assert!(text.contains("https://example.org: connection refused"), "{text}");
        assert!(text.contains("ENTRY                TUNNEL       FOR  VIA  RTT\n"), "{text}");
        assert!(text.contains("notes    up      5 s  1 of 2  1         3        http://127.0.0.1:1"), "{text}");
        assert!(text.contains("running for 1 min 1 s"), "{text}");
        assert!(text.contains("\n  worker type cpu, 4 cores, 8.0 GiB of memory, 100 GiB of disk free\n"), "{text}");
        let mut over_tcp = status.clone();
        over_tcp.entries[0].why_not_quic = Some("UDP may be blocked".into());
        assert!(over_tcp.for_people().contains("https://example.org: over TCP, since UDP may be blocked;"), "{text}");
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }
}
