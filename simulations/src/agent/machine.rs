//! What an agent says of its machine, in the contract's words. Linux tells; elsewhere less is said.

use serde_json::{Value, json};

use super::WorkerKind;

/// The `capabilities` of a registration.
pub(super) fn capabilities(kind: WorkerKind) -> Value {
    let gpu = kind == WorkerKind::Gpu;
    json!({
        "hostname": read("/proc/sys/kernel/hostname").trim(),
        "cpu_cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "ram": format!("{}GB", memory_gib(&read("/proc/meminfo"))),
        "has_gpu": gpu,
        "gpu_type": gpu.then_some("NVIDIA RTX A5000"),
        "gpu_memory": gpu.then_some("24576 MiB"),
        "worker_type": kind.as_str(),
        "has_public_ip": false,
        "public_ip": null,
        "low_latency": false,
        "latency_ms": 5,
        "has_edge": false,
        "has_storage": kind == WorkerKind::Storage,
    })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn memory_gib(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    total.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_said_in_whole_gibibytes() {
        assert_eq!(memory_gib("MemTotal:       65843820 kB\nMemFree: 1 kB\n"), 62);
        assert_eq!(memory_gib("nonsense"), 0);
    }
}
