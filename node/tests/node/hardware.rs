//! What the node finds out of its machine, and what older agents' variables say to it.

use hedgerow_proto::record::{Body, Gpu, WorkerType};

use crate::entry::Entry;
use crate::process::{Home, Node, text, until};

/// Starts the node with this script as `nvidia-smi` on its path, before the programs that the script needs.
async fn start_with_nvidia_smi(home: &Home, entry: &Entry, script: &str) -> Node {
    let directory = home.path("bin");
    std::fs::create_dir_all(&directory).unwrap();
    let program = directory.join("nvidia-smi");
    // Written by another process: one of ours that is being started at this moment would inherit it open for writing.
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let written = std::process::Command::new("sh").arg("-c").arg(write).arg(program).arg(script).status().unwrap();
    assert!(written.success());
    let path = format!("{}:/usr/bin:/bin", text(&directory));
    home.start_with(&["join", &entry.url()], &[("PATH", &path)])
}

#[tokio::test]
async fn a_gpu_is_in_the_record_and_in_the_status() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let _node = start_with_nvidia_smi(&home, &entry, "echo 'NVIDIA T400, 2048'; echo 'NVIDIA L4, 23034'").await;
    let Body::Node(record) = entry.joined().await.record.body else { panic!("not a node's record") };
    let hardware = record.hardware;
    assert_eq!(hardware.worker_type, WorkerType::Gpu);
    assert_eq!(hardware.gpu, Some(Gpu { name: "NVIDIA L4".into(), memory_mib: 23034 }));
    assert!(hardware.cpu_cores > 0 && hardware.memory_mib > 0, "{hardware:?}");

    let status = home.status().await.hardware.unwrap();
    assert_eq!((status.worker_type.as_str(), status.memory_mib), ("gpu", hardware.memory_mib));
    let for_people = String::from_utf8(home.run(&["status"]).await.stdout).unwrap();
    let line = for_people.lines().find(|line| line.contains("worker type gpu")).unwrap();
    assert!(line.ends_with("NVIDIA L4 with 22.5 GiB"), "{line}");
}

#[tokio::test]
async fn an_nvidia_smi_that_hangs_keeps_no_node_from_joining() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let mut node = start_with_nvidia_smi(&home, &entry, "exec sleep 600").await;
    let Body::Node(record) = entry.joined().await.record.body else { panic!("not a node's record") };
    assert_eq!(record.hardware.gpu, None);
    node.says(&["no GPU", "did not answer within 2s"]).await;
}

#[tokio::test]
async fn an_nvidia_smi_that_fails_or_talks_nonsense_is_no_gpu() {
    for script in ["echo 'NVIDIA T400, 2048'; exit 1", "head -c 50000 /dev/urandom | tr -d ,"] {
        let home = Home::new();
        let mut entry = Entry::start(1).await;
        let _node = start_with_nvidia_smi(&home, &entry, script).await;
        let Body::Node(record) = entry.joined().await.record.body else { panic!("not a node's record") };
        assert_eq!(record.hardware.gpu, None, "{script}");
        assert_ne!(record.hardware.worker_type, WorkerType::Gpu, "{script}");
    }
}

#[tokio::test]
async fn a_node_starts_in_an_older_agents_environment() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let url = entry.url();
    let variables = [
        ("COORDINATOR_URL", url.as_str()),
        ("WORKER_ID", "worker-7"),
        ("WORKER_TYPE", "storage"),
        ("USE_TUNNEL", "true"),
        ("TUNNEL_URL", ""),
        ("LOCATION", "Vienna"),
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("COORDINATOR_ID", ""),
        ("HEARTBEAT_TIMEOUT_SECONDS", "300"),
        ("WORKER_TIMEOUT_SECONDS", "600"),
    ];
    let mut node = home.start_with(&["join"], &variables);
    let joined = entry.joined().await;
    let Body::Node(record) = joined.record.body else { panic!("not a node's record") };
    assert_eq!((record.location.as_str(), record.hardware.worker_type), ("Vienna", WorkerType::Storage));
    node.says(&["WORKER_ID", "means nothing"]).await;
    node.says(&["USE_TUNNEL", "means nothing"]).await;
    let told = node.log().iter().filter(|line| line.contains("means nothing")).count();
    assert_eq!(told, 2, "the others are honoured or empty: {:#?}", node.log());
    let status = until("the port of its own", async || Some(home.status().await).filter(|s| s.listen.is_some())).await;
    assert!(status.listen.unwrap().starts_with("127.0.0.1:"));
}
