//! What this machine has: found out once, at the start, and never a reason not to start.
//!
//! Each part has a time limit of its own and is unknown (0, or no GPU) when it cannot be found out in time: a driver that
//! hangs takes no service of the volunteer's with it. What is said of the machine is public: sizes and a GPU's model, nothing
//! that names it.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow_proto::record::{Hardware, WorkerType};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cli::WorkerTypeChoice;

mod gpu;
mod memory;

/// How long finding out may keep the node from joining.
pub const DETECT_WITHIN: Duration = Duration::from_secs(2);
/// Room on its disk from which a machine with few cores is for keeping things.
const STORAGE_GIB_MIN: u32 = 1024;
/// More cores than this have better things to do than to keep things.
const STORAGE_CORES_MAX: u16 = 4;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Looks at this machine; `data_dir` is on the disk that counts. Takes [`DETECT_WITHIN`] at most.
pub async fn detect(choice: WorkerTypeChoice, data_dir: &Path) -> Hardware {
    detect_with(choice, data_dir, Path::new("nvidia-smi"), DETECT_WITHIN).await
}

async fn detect_with(choice: WorkerTypeChoice, data_dir: &Path, nvidia_smi: &Path, limit: Duration) -> Hardware {
    let data_dir = data_dir.to_owned();
    let (cpu_cores, memory_mib, storage_gib, gpu) = tokio::join!(
        in_time("processors", limit, cpu_cores),
        in_time("memory", limit, || memory::bytes(Path::new("/")).map(|bytes| whole(bytes, MIB))),
        in_time("disk", limit, move || storage_gib(data_dir)),
        gpu::largest(nvidia_smi, limit),
    );
    let gpu = gpu.unwrap_or_else(|error| {
        match error {
            gpu::GpuError::NotInstalled => debug!(%error, "no GPU is looked for"),
            _ => warn!(%error, "the node says that it has no GPU"),
        }
        None
    });
    let mut hardware = Hardware {
        worker_type: WorkerType::default(),
        cpu_cores: cpu_cores.unwrap_or(0),
        memory_mib: memory_mib.unwrap_or(0),
        storage_gib: storage_gib.unwrap_or(0),
        gpu,
    };
    hardware.worker_type = worker_type(choice, &hardware);
    hardware
}

/// What the machine is for, unless its operator has said so: a GPU decides; much room beside few cores is a machine that was
/// bought to keep things (1 TiB free and at most 4 cores); everything else computes. That a machine passes requests on for
/// others does not show in its hardware, so `edge` is never a guess.
fn worker_type(choice: WorkerTypeChoice, hardware: &Hardware) -> WorkerType {
    match choice {
        WorkerTypeChoice::Gpu => WorkerType::Gpu,
        WorkerTypeChoice::Cpu => WorkerType::Cpu,
        WorkerTypeChoice::Storage => WorkerType::Storage,
        WorkerTypeChoice::Edge => WorkerType::Edge,
        WorkerTypeChoice::Auto if hardware.gpu.is_some() => WorkerType::Gpu,
        WorkerTypeChoice::Auto => {
            let few_cores = (1..=STORAGE_CORES_MAX).contains(&hardware.cpu_cores);
            let large_disk = hardware.storage_gib >= STORAGE_GIB_MIN;
            if few_cores && large_disk { WorkerType::Storage } else { WorkerType::Cpu }
        }
    }
}

/// Logical processors that this process may use: affinity and cgroup quotas count.
fn cpu_cores() -> Option<u16> {
    let cores = std::thread::available_parallelism().map(NonZero::get).ok()?;
    Some(u16::try_from(cores).unwrap_or(u16::MAX))
}

/// What a user without privileges can still write to the disk of this directory.
fn storage_gib(directory: PathBuf) -> Option<u32> {
    let disk = rustix::fs::statvfs(&directory).ok()?;
    Some(whole(disk.f_bavail.saturating_mul(disk.f_frsize), GIB))
}

fn whole(bytes: u64, unit: u64) -> u32 {
    u32::try_from(bytes / unit).unwrap_or(u32::MAX)
}

/// Asks on a thread of its own, and leaves it behind when it does not answer: a disk that hangs (a network share) would hold
/// the runtime up, and a thread of the runtime's would hold its end up.
async fn in_time<T: Send + 'static>(
    what: &str,
    limit: Duration,
    ask: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    let (sender, answer) = oneshot::channel();
    // Nobody may wait for the answer any more.
    let asked = std::thread::Builder::new().name(format!("detect {what}")).spawn(move || drop(sender.send(ask())));
    let found = match asked {
        Ok(_) => timeout(limit, answer).await.ok().and_then(Result::ok).flatten(),
        Err(_) => None,
    };
    if found.is_none() {
        warn!(what, "cannot find out what this machine has of it; the node says that it is unknown");
    }
    found
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::record::Gpu;

    use super::*;

    #[test]
    fn the_hardware_decides_unless_the_operator_does() {
        use WorkerTypeChoice as Choice;
        let gpu = Some(Gpu { name: "NVIDIA T400".into(), memory_mib: 2048 });
        let machine = |cpu_cores, storage_gib, gpu: &Option<Gpu>| Hardware {
            cpu_cores,
            storage_gib,
            gpu: gpu.clone(),
            ..Hardware::default()
        };
        for (choice, hardware, expected) in [
            (Choice::Auto, machine(16, 500, &None), WorkerType::Cpu),
            (Choice::Auto, machine(16, 500, &gpu), WorkerType::Gpu),
            (Choice::Auto, machine(4, 1024, &None), WorkerType::Storage),
            (Choice::Auto, machine(4, 1024, &gpu), WorkerType::Gpu),
            (Choice::Auto, machine(5, 1024, &None), WorkerType::Cpu),
            (Choice::Auto, machine(4, 1023, &None), WorkerType::Cpu),
            (Choice::Auto, machine(0, 1024, &None), WorkerType::Cpu),
            (Choice::Edge, machine(4, 1024, &gpu), WorkerType::Edge),
            (Choice::Cpu, machine(4, 1024, &gpu), WorkerType::Cpu),
            (Choice::Storage, machine(0, 0, &None), WorkerType::Storage),
            (Choice::Gpu, machine(0, 0, &None), WorkerType::Gpu),
        ] {
            assert_eq!(worker_type(choice, &hardware), expected, "{choice:?} {hardware:?}");
        }
    }

    #[tokio::test]
    async fn this_machine_has_something_of_everything() {
        let hardware = detect(WorkerTypeChoice::Storage, &std::env::temp_dir()).await;
        assert_eq!(hardware.worker_type, WorkerType::Storage);
        assert!(hardware.cpu_cores > 0);
        assert!(hardware.memory_mib > 64, "{hardware:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_found_out_is_unknown() {
        let nowhere = Path::new("/nowhere");
        let hardware = detect_with(WorkerTypeChoice::Auto, nowhere, nowhere, DETECT_WITHIN).await;
        assert_eq!((hardware.storage_gib, hardware.gpu), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_in_time_is_left_behind() {
        let (_held, hangs) = std::sync::mpsc::channel::<u32>();
        assert_eq!(in_time("answer", DETECT_WITHIN, move || hangs.recv().ok()).await, None);
    }
}
