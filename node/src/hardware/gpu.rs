//! The largest GPU, as `nvidia-smi` tells: the one program that every NVIDIA driver brings, so that nothing has to be linked.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hedgerow_proto::limits::Limits;
use hedgerow_proto::record::Gpu;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// A line is some 30 bytes and a machine has some 16 GPUs: what is longer is no answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why nothing is known of a GPU.
#[derive(Debug, thiserror::Error)]
pub(super) enum GpuError {
    /// Most machines.
    #[error("there is no nvidia-smi")]
    NotInstalled,
    /// It does not start, or its answer cannot be read.
    #[error("nvidia-smi cannot be asked: {0}")]
    Io(io::Error),
    /// A driver that does not work, mostly.
    #[error("nvidia-smi failed ({0}); run it by hand to see why")]
    Failed(ExitStatus),
    /// It hangs, or loads the driver for every question.
    #[error("nvidia-smi did not answer within {0:?}; if it only is slow, nvidia-persistenced makes it quick")]
    Timeout(Duration),
}

/// Asks the program; the GPU with the most memory counts. A program that hangs is killed.
pub(super) async fn largest(nvidia_smi: &Path, limit: Duration) -> Result<Option<Gpu>, GpuError> {
    timeout(limit, ask(nvidia_smi)).await.unwrap_or(Err(GpuError::Timeout(limit))).map(|answer| parse(&answer))
}

async fn ask(nvidia_smi: &Path) -> Result<String, GpuError> {
    let mut child = Command::new(nvidia_smi)
        .args(["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => GpuError::NotInstalled,
            _ => GpuError::Io(error),
        })?;
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // What is over the bound is not read: writing it fails, and so does the program.
        stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await.map_err(GpuError::Io)?;
    }
    let status = child.wait().await.map_err(GpuError::Io)?;
    if status.success() { Ok(String::from_utf8_lossy(&answer).into_owned()) } else { Err(GpuError::Failed(status)) }
}

/// `NAME, MIB` in each line. GPUs that share the machine's memory say `[N/A]`: theirs is not known. What is no GPU ("No
/// devices were found") is passed over.
fn parse(answer: &str) -> Option<Gpu> {
    let gpu = |line: &str| {
        let (name, memory) = line.rsplit_once(',')?;
        let memory = memory.trim();
        let memory_mib = if memory.starts_with('[') { 0 } else { memory.parse().ok()? };
        let name = clean(name);
        (!name.is_empty()).then_some(Gpu { name, memory_mib })
    };
    // Of several like it, the first: it is the one that programs use when they are not told which.
    answer.lines().filter_map(gpu).reduce(|best, next| if next.memory_mib > best.memory_mib { next } else { best })
}

/// A name that a record may hold.
fn clean(name: &str) -> String {
    let mut name: String = name.chars().filter(|c| !c.is_control() && !turns(*c)).collect();
    let max = Limits::PRODUCTION.gpu_name_bytes_max;
    name.truncate(name.floor_char_boundary(max.min(name.len())));
    name.trim().to_owned()
}

/// Characters that break lines or turn the writing round: records are refused for them.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests;
