//! What the contract does by itself, without any call.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Mutex;

use hedgerow_mesh::clock::Clock;
use hedgerow_mesh::data_dir::DataDir;
use hedgerow_mesh::host::LanDiscovery;
use hedgerow_mesh::replica::{Replica, ReplicaConfig};
use hedgerow_proto::clock::Time;
use hedgerow_proto::id::FederationId;
use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::{Candidacy, Roles};
use tokio::time::timeout;

use super::*;
use crate::bootstrap::Bootstrap;
use crate::mesh::MeshConfig;
use crate::platform::Platform;
use crate::settings::MeshListen;

#[derive(Default)]
struct Hand(Mutex<Time>);

impl Clock for Hand {
    fn now(&self) -> Time {
        *self.0.lock().unwrap()
    }
    fn suspended(&self) -> Duration {
        Duration::ZERO
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_does_not_turn_in_circles_over_what_only_a_coordinator_does() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = Arc::new(DataDir::open(directory.path()).unwrap());
    let (key, federation, clock) = (data_dir.key().clone(), FederationId([7; 32]), Arc::new(Hand::default()));
    let config =
        ReplicaConfig { data_dir, federation, limits: Limits::PRODUCTION, incarnation: 1, clock: clock.clone() };
    let (mesh, _calls) = Mesh::new(MeshConfig {
        federation,
        replica: Replica::open(config).unwrap(),
        key,
        incarnation: 1,
        roles: Roles::Worker,
        candidacy: Candidacy::Fixed,
        listen: MeshListen::Off,
        spawn_host: Platform::system(Bootstrap::new(None, vec![]).unwrap().tls(), LanDiscovery::Off).spawn_host,
        seed: 1,
    });
    let contract = Contract::new(mesh, Arc::new(LocalServices::new(Vec::new())), DeskConfig::default(), 1);
    *clock.0.lock().unwrap() = Time::from_origin(Duration::from_secs(3600));
    let (mut run, mut turns) = (pin!(contract.run()), 0);
    let watched = poll_fn(|cx| {
        turns += 1;
        assert!(turns < 100, "it keeps the processor busy");
        run.as_mut().poll(cx)
    });
    timeout(Duration::from_secs(60), watched).await.unwrap_err();
}
