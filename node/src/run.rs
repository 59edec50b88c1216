//! `join`, from settings to the end of the process: opens what the node needs, joins, serves, drains.

use std::sync::Arc;
use std::time::Duration;

use hedgerow_contract::url::UrlPolicy;
use hedgerow_http::Loads;
use hedgerow_process::exit::Failure;
use hedgerow_process::ready_file::ReadyFile;
use hedgerow_process::shutdown::Shutdown;
use hedgerow_proto::id::FederationId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::own::Voice;
use hedgerow_proto::record::Body;
use hedgerow_urls::Dialler;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::bootstrap::Bootstrap;
use crate::control::Control;
use crate::elsewhere::Outward;
use crate::entries::Entries;
use crate::hardware;
use crate::identity::Identity;
use crate::lan;
use crate::membership::{self, Profile};
use crate::mesh::{by_entry, discovery};
use crate::node::{Node, role_word};
use crate::platform::Platform;
use crate::probe;
use crate::remembered;
use crate::services::LocalServices;
use crate::settings::Settings;
use crate::status::{HardwareStatus, LeaveProgress};

/// How long requests may take to finish when the node leaves.
const DRAIN_TIMEOUT: Duration = hedgerow_tunnel::tuning::DRAIN_TIMEOUT;
/// How long the first look at the services may keep the node from joining.
const FIRST_PROBES_WITHIN: Duration = Duration::from_secs(3);
/// How often a node that leaves looks whether it is done.
const DRAIN_TICK: Duration = Duration::from_millis(50);
/// How long the ends of the tunnels, and of the conversation with whoever asked the node to leave, may take once all is done.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(500);
/// The close of a connection is a packet like any other, and has to get out before the process ends: an entry that has seen
/// none waits for its time-out.
const LAST_PACKETS: Duration = Duration::from_millis(50);

/// The content of the ready file.
#[derive(Serialize)]
struct Ready {
    node_id: String,
    federation: Option<String>,
    listen: Option<String>,
    mesh_listen: Vec<String>,
    entries: Vec<ReadyEntry>,
    data_dir: String,
    pid: u32,
}

#[derive(Serialize)]
struct ReadyEntry {
    url: String,
    entry_id: Option<String>,
    up: bool,
}

/// Runs the node until it is asked to leave, or cannot go on.
pub async fn join(settings: Settings) -> Result<(), Failure> {
    let identity = Identity::open(&settings.data_dir)?;
    let mut ready_file = settings.ready_file.as_deref().map(ReadyFile::at).transpose()?;
    let control = Control::bind(&settings.data_dir).map_err(|error| {
        Failure::runtime(&error)
            .means("`status` and `leave` could not reach the node, so it did not start")
            .advice("use a --data-dir with a shorter path (a socket's path has about 100 bytes), on a local disk")
    })?;
    let bootstrap = Bootstrap::new(settings.entry_ca.as_deref(), settings.entry_keys.clone()).map_err(|error| {
        Failure::usage(&error).means("no https entry could be proven").advice("correct --entry-ca, or leave it out")
    })?;
    let shutdown =
        Shutdown::on_signals().map_err(|error| Failure::runtime(format!("cannot listen for signals: {error}")))?;
    let services = Arc::new(LocalServices::new(settings.services.clone()));
    let lan = settings.listen.map(lan::bind).transpose()?;
    let profile = Profile {
        roles: settings.roles,
        candidacy: settings.candidacy,
        location: settings.location.clone(),
        version: membership::VERSION.to_owned(),
        // Its directory is there by now.
        hardware: hardware::detect(settings.worker_type, &settings.data_dir).await,
        mesh_listen: settings.mesh_listen.clone(),
        heartbeat_timeout: settings.heartbeat_timeout,
        worker_timeout: settings.worker_timeout,
        urls: settings.urls.clone(),
    };
    check_record(&identity, &profile, &services)?;
    let (failures, mut failed) = mpsc::channel(1);
    let platform = Platform::system(bootstrap.tls(), discovery::decide(settings.lan_discovery, &settings.entries));
    let node = Node::new(identity, profile, services, shutdown, settings.data_dir.clone(), platform, failures);
    greet(&settings, &node);

    let control_task = tokio::spawn({
        let node = node.clone();
        async move { control.serve(node).await }
    });
    look_after_services(&node).await;
    if let Some(listener) = lan {
        open_to_lan(&node, listener, settings.urls)?;
    }
    let config_for = {
        let node = Arc::downgrade(&node);
        Box::new(move |federation, entry| node.upgrade().ok_or("the node is stopping")?.dial_config(federation, entry))
    };
    let entries = Entries::new(bootstrap, config_for, node.seed());
    node.set_entries(entries.clone());
    tokio::spawn({
        let (changes, entries, node) = (entries.changes(), entries.clone(), Arc::downgrade(&node));
        by_entry::follow(changes, move || entries.up(), move || Some(node.upgrade()?.meshes()))
    });
    tokio::spawn(remembered::keep(Arc::downgrade(&node), entries.clone(), settings.entries.clone()));
    let following = tokio::spawn(entries.clone().follow(settings.entries));

    tokio::select! {
        served = serve(&node, &entries, ready_file.as_mut()) => served?,
        // There is a sender for as long as there is a node.
        Some(failure) = failed.recv() => return Err(failure),
    }
    following.abort();
    let outcome = leave(&node, &entries).await;
    node.end().await;
    // Nobody may be there to listen any more: the process ends all the same.
    let _ = timeout(LAST_WORDS_WITHIN, node.told()).await;
    // Only now: whoever waits for the file to go, or for `leave` to end, may take the data directory over.
    drop(ready_file);
    control_task.abort();
    outcome
}

fn open_to_lan(node: &Arc<Node>, listener: std::net::TcpListener, urls: UrlPolicy) -> Result<(), Failure> {
    let address =
        listener.local_addr().map_err(|error| Failure::runtime(format!("cannot serve on --listen: {error}")))?;
    node.set_listen(address);
    let dialler = Dialler::new(urls)
        .map_err(|error| Failure::runtime(format!("cannot set up TLS with agents: {error}")))
        .map(Arc::new)?;
    let outward = Arc::new(Outward { dialler, loads: Loads::default() });
    node.set_outward(outward.clone());
    lan::serve(listener, node, outward)?;
    info!("this node's own services are at http://{address}/service/NAME/");
    Ok(())
}

/// A record that no entry would take is found out before the first one refuses it.
fn check_record(identity: &Identity, profile: &Profile, services: &LocalServices) -> Result<(), Failure> {
    let record = profile.record(profile.roles, services, profile.mesh_listen.addresses(), None);
    let federation = FederationId([0; 32]);
    Voice::new(identity.key().clone(), federation, identity.incarnation, 0, Limits::PRODUCTION)
        .sign(&Body::Node(record))
        .map(drop)
        .map_err(|error| {
            Failure::usage(format!("what this node would say of itself is not valid: {error}"))
                .means("no entry would take it")
                .advice("offer fewer services, or give them shorter names")
        })
}

fn greet(settings: &Settings, node: &Node) {
    let names: Vec<_> = node.services.iter().map(|service| service.spec.name.as_str()).collect();
    info!(
        node = %node.identity.key().id(),
        role = role_word(settings.roles),
        services = names.join(","),
        data_dir = %settings.data_dir.display(),
        "hedgerow-node {} starts",
        env!("CARGO_PKG_VERSION")
    );
    info!("this machine: {}", HardwareStatus::of(&node.profile.hardware));
    if settings.services.is_empty() {
        info!(
            "no service is named: the node is a coordinator and offers nothing; --service NAME=http://127.0.0.1:PORT makes it a worker"
        );
    }
    if settings.urls.allow_private {
        warn!(
            "--allow-private-urls: agents may have this node ask whatever it can reach, when it is a coordinator; for trying it out"
        );
    }
    for name in &settings.ignored_variables {
        info!(
            variable = name,
            "this variable is set and means nothing to this node: its id is its key, and it always dials out"
        );
    }
}

/// Starts the probes, and waits until each service is known to be up or down, so that the first record is true.
async fn look_after_services(node: &Arc<Node>) {
    let (known, mut all_known) = mpsc::channel::<()>(1);
    for service in node.services.iter() {
        let (services, service, known) = (node.services.clone(), service.clone(), known.clone());
        tokio::spawn(async move { probe::watch(&services, &service, move || drop(known)).await });
    }
    let services = node.services.clone();
    tokio::spawn(async move { services.sweep().await });
    drop(known);
    // Nothing is ever sent: the channel closes when the last service is known. One that takes longer is down for now.
    let _ = timeout(FIRST_PROBES_WITHIN, all_known.recv()).await;
}

/// Until the node is asked to leave.
async fn serve(
    node: &Arc<Node>,
    entries: &Arc<Entries>,
    mut ready_file: Option<&mut ReadyFile>,
) -> Result<(), Failure> {
    let mut changes = entries.changes();
    loop {
        if entries.any_up()
            && let Some(file) = ready_file.take()
        {
            // A moment at most: the host was put up before the first tunnel was dialled.
            let _ = timeout(FIRST_PROBES_WITHIN, node.mesh_bound()).await;
            file.write(&ready(node))?;
        }
        tokio::select! {
            () = node.shutdown.draining() => return Ok(()),
            _ = changes.changed() => {}
        }
    }
}

fn ready(node: &Node) -> Ready {
    let entry = |view: crate::entries::EntryView| {
        let crate::entries::EntryState::Known(status) = &view.state else {
            return ReadyEntry { url: view.url, entry_id: None, up: false };
        };
        ReadyEntry {
            entry_id: status.entry.map(|id| id.to_string()),
            up: matches!(status.state, hedgerow_tunnel::TunnelState::Up(_)),
            url: view.url,
        }
    };
    Ready {
        node_id: node.identity.key().id().to_string(),
        federation: node.federation().map(|federation| federation.to_string()),
        listen: node.listen().map(|address| address.to_string()),
        mesh_listen: node.mesh_addresses(),
        entries: node.entries().into_iter().map(entry).collect(),
        data_dir: node.data_dir.display().to_string(),
        pid: std::process::id(),
    }
}

/// Says Leave, lets what runs finish, and closes; or cuts it off after [`DRAIN_TIMEOUT`] or at the second signal.
async fn leave(node: &Arc<Node>, entries: &Arc<Entries>) -> Result<(), Failure> {
    let began = Instant::now();
    let running = node.running();
    node.report(LeaveProgress::Draining { running });
    info!(running, "leaving: nothing new is taken, what runs may finish");
    node.hand_over().await;
    node.begin_to_leave();
    let mut tick = interval(DRAIN_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let finished = async {
        loop {
            tick.tick().await;
            let running = node.running();
            if entries.none_up() && running == 0 {
                return;
            }
            node.report(LeaveProgress::Draining { running });
        }
    };
    let done = tokio::select! {
        in_time = timeout(DRAIN_TIMEOUT, finished) => in_time.is_ok(),
        () = node.shutdown.stopping() => false,
    };
    let running = node.running();
    if !done {
        entries.cut();
    }
    // A tunnel that does not come to its end now never does.
    let _ = timeout(LAST_WORDS_WITHIN, entries.ended()).await;
    sleep(LAST_PACKETS).await;
    if done || running == 0 {
        info!(took_ms = began.elapsed().as_millis() as u64, "left");
        node.report(LeaveProgress::Left);
        return Ok(());
    }
    node.report(LeaveProgress::Cut { running });
    let requests = if running == 1 { "1 request".to_owned() } else { format!("{running} requests") };
    Err(Failure::runtime(format!("{requests} still ran and had to be cut off"))
        .means("their clients see a broken answer, unless the entry could send them elsewhere"))
}
