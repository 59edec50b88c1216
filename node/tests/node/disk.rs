//! What a node keeps on its disk, and a disk that takes nothing.

use std::process::Stdio;

use crate::entry::Entry;
use crate::process::{Home, in_time, until};

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_log_on_a_full_disk_does_not_end_the_node() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let mut command = home.command(&["join", &entry.url()]);
    // Writing to this device fails as on a full disk.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut node = command.stdout(Stdio::null()).stderr(full).spawn().unwrap();
    entry.joined().await;
    assert_eq!(home.status().await.entries.len(), 1);
    assert_eq!(node.try_wait().unwrap(), None);
}

#[tokio::test]
async fn a_node_that_starts_while_its_entry_is_gone_goes_on_in_the_federation_that_it_was_of() {
    let home = Home::new();
    let mut entry = Entry::start(1).await;
    let (url, federation) = (entry.url(), entry.identity.federation.to_string());
    let mut node = home.start(&["join", &url, "--mesh-listen", "/ip4/127.0.0.1/tcp/0"]);
    entry.joined().await;
    let remembered = home.data_dir().join("entries");
    until("the entry is remembered", async || remembered.exists().then_some(())).await;
    entry.stop().await;
    node.signal("KILL");
    node.ends().await;
    let mut node = home.start(&["join", &url, "--mesh-listen", "/ip4/127.0.0.1/tcp/0"]);
    node.says(&["goes on in the federation", &federation]).await;
    let part = until("its part on the mesh", async || {
        let status = home.status().await;
        status.mesh.into_iter().find(|_| !status.mesh_listen.is_empty())
    })
    .await;
    assert_eq!((part.federation.as_str(), part.role.as_str()), (federation.as_str(), "coordinator"));
    node.signal("KILL");
    node.ends().await;
    // What is damaged is not believed.
    let whole = std::fs::read_to_string(&remembered).unwrap();
    std::fs::write(&remembered, whole.replacen("hedgerow", "hedgerox", 1)).unwrap();
    let mut node = home.start(&["join", &url]);
    node.says(&["damaged", "entries.corrupt-1"]).await;
    let waited = until("it has waited", async || {
        let status = home.status().await;
        (status.uptime_ms > 4_000).then_some(status)
    });
    assert!(in_time("it waits", waited).await.mesh.is_empty());
}
