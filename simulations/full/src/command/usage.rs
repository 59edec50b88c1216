//! What a process has used of its machine.

/// CPU and memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU seconds, of all threads.
    pub(crate) cpu_s: f64,
    /// The most memory that was resident at once.
    pub(crate) peak_rss_mib: f64,
}

/// Of this process, until now. Zero what the system does not say.
pub(crate) fn of_this_process() -> Usage {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib: f64 = peak.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything: user and system time are the 12th and 13th field, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default();
    Usage { cpu_s: (ticks(11) + ticks(12)) / 100.0, peak_rss_mib: peak_kib / 1024.0 }
}
