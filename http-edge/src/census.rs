//! Tells the nodes here that may be elected coordinators what [`hedgerow_proto::election`] decides by.

use std::convert::Infallible;

use hedgerow_proto::election::{CENSUS_INTERVAL, CENSUS_SILENT_FOR, census};
use hedgerow_proto::frame::Control;
use tokio::time::{Instant, sleep};

use crate::federation::Federation;

/// Tells it for as long as the entry lives.
pub(crate) async fn tell(federation: &Federation) -> Infallible {
    let began = Instant::now();
    loop {
        sleep(CENSUS_INTERVAL).await;
        if began.elapsed() >= CENSUS_SILENT_FOR {
            let (nodes, coordinators) = federation.counts();
            for (node, census) in census(nodes, coordinators, federation.candidates()) {
                federation.tell(&node, Control::Census(census));
            }
        }
    }
}
