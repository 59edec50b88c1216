//! What a run costs.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of this thread until now.
pub(super) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The most memory that this process ever held, in MiB; 0 where the system does not say.
pub(super) fn peak_rss_mib() -> f64 {
    kib(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmHWM:").unwrap_or(0.0) / 1024.0
}

/// What could be taken without swapping, in MiB.
pub(super) fn available_mib() -> Option<u64> {
    kib(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:").map(|kib| kib as u64 / 1024)
}

fn kib(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_held_memory_and_used_its_processor() {
        assert!(peak_rss_mib() > 0.1 && available_mib().is_some_and(|mib| mib > 0));
        let before = thread_cpu();
        while thread_cpu() == before {
            std::hint::spin_loop();
        }
    }
}
