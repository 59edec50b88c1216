//! What a node runs on, as `status` says it.

use std::fmt;

use hedgerow_proto::record::Hardware;
use serde::{Deserialize, Serialize};

/// What the node runs on, as its record says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardwareStatus {
    /// `gpu`, `cpu`, `storage` or `edge`.
    pub worker_type: String,
    /// Logical processors; 0 where that is not known.
    pub cpu_cores: u16,
    /// Main memory in MiB; 0 where that is not known.
    pub memory_mib: u32,
    /// Room on the disk of its data directory in GiB when it started; 0 where that is not known.
    pub storage_gib: u32,
    /// Its largest GPU, if it has one.
    pub gpu: Option<GpuStatus>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuStatus {
    /// What its driver calls it.
    pub name: String,
    /// Its memory in MiB; 0 where that is not known.
    pub memory_mib: u32,
}

impl HardwareStatus {
    /// As programs and people read it.
    pub fn of(hardware: &Hardware) -> Self {
        let gpu = hardware.gpu.as_ref();
        Self {
            worker_type: hardware.worker_type.as_str().to_owned(),
            cpu_cores: hardware.cpu_cores,
            memory_mib: hardware.memory_mib,
            storage_gib: hardware.storage_gib,
            gpu: gpu.map(|gpu| GpuStatus { name: gpu.name.clone(), memory_mib: gpu.memory_mib }),
        }
    }
}

/// In one line; what is not known is left out.
impl fmt::Display for HardwareStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker type {}", self.worker_type)?;
        match self.cpu_cores {
            0 => {}
            1 => f.write_str(", 1 core")?,
            cores => write!(f, ", {cores} cores")?,
        }
        if self.memory_mib > 0 {
            write!(f, ", {} of memory", gib(self.memory_mib))?;
        }
        if self.storage_gib > 0 {
            write!(f, ", {} GiB of disk free", self.storage_gib)?;
        }
        match &self.gpu {
            None => Ok(()),
            Some(GpuStatus { name, memory_mib: 0 }) => write!(f, ", {name}"),
            Some(GpuStatus { name, memory_mib }) => write!(f, ", {name} with {}", gib(*memory_mib)),
        }
    }
}

fn gib(mib: u32) -> String {
    format!("{:.1} GiB", f64::from(mib) / 1024.0)
}

#[cfg(test)]
mod tests {
    use hedgerow_proto::record::{Gpu, WorkerType};

    use super::*;

    #[test]
    fn what_is_known_of_a_machine_is_said_in_one_line() {
        let gpu = Some(Gpu { name: "NVIDIA T400".into(), memory_mib: 2048 });
        let all = Hardware { worker_type: WorkerType::Gpu, cpu_cores: 16, memory_mib: 64116, storage_gib: 900, gpu };
        assert_eq!(
            HardwareStatus::of(&all).to_string(),
            "worker type gpu, 16 cores, 62.6 GiB of memory, 900 GiB of disk free, NVIDIA T400 with 2.0 GiB"
        );
        let shared = Hardware { gpu: Some(Gpu { name: "NVIDIA GB10".into(), memory_mib: 0 }), cpu_cores: 1, ..all };
        assert!(HardwareStatus::of(&shared).to_string().ends_with("disk free, NVIDIA GB10"));
        assert!(HardwareStatus::of(&shared).to_string().contains(", 1 core, "));
        assert_eq!(HardwareStatus::of(&Hardware::default()).to_string(), "worker type cpu");
    }
}
