//! One slice of load by wrk, and what it says of it.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What one slice brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slice {
    /// Requests that were answered.
    pub(super) requests: u64,
    /// Requests a second.
    pub(super) rate: f64,
    /// 99 of 100 took no longer.
    pub(super) p99: Duration,
    /// Answers that were errors, and sockets that broke.
    pub(super) errors: u64,
}

/// Loads a URL for a second.
pub(super) async fn slice(url: &str, connections: u32) -> Result<Slice> {
    let output = tokio::process::Command::new("wrk")
        .args(["-t1", "-d1s", "--latency", &format!("-c{connections}"), url])
        .kill_on_drop(true)
        .output()
        .await
        .context("wrk does not start")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    parse(&text).with_context(|| format!("wrk said something unexpected:\n{text}"))
}

fn parse(text: &str) -> Option<Slice> {
    let after = |marker: &str| text.lines().find_map(|line| line.trim().strip_prefix(marker)).map(str::trim);
    let requests =
        text.lines().find(|line| line.contains(" requests in "))?.split_ascii_whitespace().next()?.parse().ok()?;
    let bad_statuses = after("Non-2xx or 3xx responses:").map_or(Some(0), |count| count.parse().ok())?;
    let broken: u64 = after("Socket errors:")
        .map_or(0, |counts| counts.split([',', ' ']).filter_map(|word| word.parse::<u64>().ok()).sum());
    Some(Slice {
        requests,
        rate: after("Requests/sec:")?.parse().ok()?,
        p99: duration(after("99%")?)?,
        errors: bad_statuses + broken,
    })
}

/// `1.23ms`, `950.00us`, `1.02s`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let value: f64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        "us" => value / 1e6,
        "ms" => value / 1e3,
        "s" => value,
        _ => return None,
    };
    Some(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_understood() {
        let text = "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
                    Latency     1.00ms    2.00ms   9.00ms   92.19%\n  Latency Distribution\n     50%  950.00us\n     75%    1.20ms\n     99%    4.56ms\n  \
                    20105 requests in 1.00s, 24.35MB read\n  Socket errors: connect 0, read 2, write 0, timeout 1\n  Non-2xx or 3xx responses: 4\n\
                    Requests/sec:  20099.33\nTransfer/sec:     24.34MB\n";
        let slice = parse(text).unwrap();
        assert_eq!((slice.requests, slice.errors), (20105, 7));
        assert_eq!(slice.p99, Duration::from_micros(4560));
        assert!((slice.rate - 20099.33).abs() < 0.01);
        assert_eq!(duration("950.00us"), Some(Duration::from_micros(950)));
    }
}
