//! CPU time: of a process group with all its threads, of this process with the children that it has waited for, and of the machine.

use std::time::Duration;

use anyhow::{Context, Result};

/// Of all processes of a group, in nanoseconds as the scheduler counts them.
pub(super) fn of_group(group: i32) -> Result<Duration> {
    let mut nanoseconds = 0_u64;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let is_process = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        // A process may end between being listed and being read.
        let Some(stat) = is_process.then(|| std::fs::read_to_string(entry.path().join("stat")).ok()).flatten() else {
            continue;
        };
        if field(&stat, 5) != Some(i64::from(group)) {
            continue;
        }
        for thread in std::fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text.split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Of this process and the children that have ended.
pub(super) fn of_harness() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let total: i64 = (14..=17).filter_map(|number| field(&stat, number)).sum();
    Ok(ticks(u64::try_from(total)?))
}

/// Of the whole machine, idle time left out.
pub(super) fn of_machine() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let numbers: Vec<u64> = line.split_ascii_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy = numbers.iter().take(8).enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, n)| n).sum();
    Ok(ticks(busy))
}

fn ticks(count: u64) -> Duration {
    Duration::from_nanos(count * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// A field of a `stat` file by its number in proc(5); the name in brackets is field 2.
fn field(stat: &str, number: usize) -> Option<i64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        assert_eq!(field("7 (a) b) S 1 42 9", 5), Some(42));
    }

    #[test]
    fn work_is_seen_in_this_group() {
        let group = field(&std::fs::read_to_string("/proc/self/stat").unwrap(), 5).unwrap();
        let before = of_group(i32::try_from(group).unwrap()).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(of_group(i32::try_from(group).unwrap()).unwrap() > before);
    }
}
