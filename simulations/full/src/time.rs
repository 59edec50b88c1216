//! Virtual time: a thread on which time passes only when everybody waits for it, and on which all randomness follows a seed.
//!
//! ```text
//!  tokio (paused clock) ── jumps to the next timer when no task can run ──▶ now
//!  std::time, web_time, rand, RandomState ── clock_gettime, getrandom ── hooks ──▶ the same now, the seed
//!  futures_timer ── the patched crate ──▶ tokio
//! ```
//!
//! Unmodified libp2p reads clocks, draws randomness and iterates over hash maps wherever it likes; with these three it does
//! the same in every run. It also counts (connections, listeners) in statics of the process, so a process runs one simulation
//! whose trace is to mean something.

use std::time::Duration;

use hedgerow_proto::clock::Time;
use tokio::time::Instant;

mod hooks;

pub use hooks::{Machine, ProcessView, disk_of, enter_process, set_disk_full, set_machine, wall_clock};

/// Why a simulation does not run.
#[derive(Debug, thiserror::Error)]
pub enum TimeError {
    /// The thread or its runtime does not start.
    #[error("cannot start the simulation's thread: {0}")]
    Start(#[from] std::io::Error),
    /// The linker did not take our functions.
    #[error(
        "{0} of this binary is not the simulation's own, so nothing would be the same twice; was it linked in another way?"
    )]
    NotHooked(&'static str),
    /// libp2p's timers are not ours.
    #[error(
        "no timer of the patched futures-timer was made: libp2p is built with another version, and runs on real time \
         (`cargo tree -i futures-timer` must name one package, of this workspace)"
    )]
    NotPatched,
    /// The simulation panicked; its message is on standard error.
    #[error("the simulation panicked")]
    Panicked,
}

/// Runs `simulation` in virtual time, which begins with it, on a thread of its own. What it leaves behind is not torn down: the
/// process is to end soon.
pub fn run<T, F>(seed: u64, simulation: impl FnOnce() -> F + Send + 'static) -> Result<T, TimeError>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    // A new thread: what a thread remembers (keys of hash maps, generators) then begins with the seed.
    let thread = std::thread::Builder::new().name("simulation".into()).spawn(move || {
        hooks::activate(seed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        // Entries keep to one thread, and use it.
        let local = tokio::task::LocalSet::new();
        let result = local.block_on(&runtime, async {
            hooks::begin(Instant::now());
            simulation().await
        });
        hooks::deactivate();
        // Thousands of tasks that would say goodbye to each other.
        std::mem::forget((local, runtime));
        Ok(result)
    })?;
    thread.join().map_err(|_| TimeError::Panicked)?
}

/// The virtual time.
pub fn now() -> Time {
    Time::from_origin(hooks::elapsed())
}

/// Ready at a moment of virtual time.
pub async fn until(at: Time) {
    let pause = at.since(now());
    if pause > Duration::ZERO {
        tokio::time::sleep(pause).await;
    }
}

/// Whether the timers of libp2p are ours: to be asked when some have been made.
pub fn check_timers() -> Result<(), TimeError> {
    if futures_timer::delays_made() == 0 { Err(TimeError::NotPatched) } else { Ok(()) }
}
