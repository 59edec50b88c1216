use std::path::PathBuf;
use std::time::Instant;

use hedgerow_proto::id::FederationId;
use hedgerow_proto::key::SecretKey;
use hedgerow_proto::own::Voice;
use hedgerow_proto::record::{Body, Hardware, NodeRecord, Roles};

use super::*;

/// For what must happen sooner or later on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that does as the script says. Its file is written by another process: one of ours that is being started at the
/// same moment would inherit it open for writing, and then it could not be run.
fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("nvidia-smi");
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let written = std::process::Command::new("sh").arg("-c").arg(write).arg(&program).arg(script).status().unwrap();
    assert!(written.success());
    (directory, program)
}

/// Looks again and again, and lets the runtime run meanwhile.
async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::task::yield_now().await;
    }
}

async fn asked(script: &str) -> Result<Option<Gpu>, GpuError> {
    let (_directory, program) = fake(script);
    largest(&program, PATIENCE).await
}

fn gpu(name: &str, memory_mib: u32) -> Option<Gpu> {
    Some(Gpu { name: name.into(), memory_mib })
}

#[tokio::test]
async fn the_largest_gpu_counts() {
    let script = "[ \"$*\" = '--query-gpu=name,memory.total --format=csv,noheader,nounits' ] || exit 1\n\
        echo 'NVIDIA T400, 2048'; echo 'NVIDIA GeForce RTX 4090, 24564'; echo 'NVIDIA RTX A5000, 24564'";
    assert_eq!(asked(script).await.unwrap(), gpu("NVIDIA GeForce RTX 4090", 24564));
}

#[tokio::test]
async fn a_driver_that_does_not_work_is_no_gpu_and_is_told_of() {
    let answer = asked("echo 'NVIDIA-SMI has failed, 9'; exit 1").await;
    assert!(matches!(answer, Err(GpuError::Failed(_))), "{answer:?}");
    assert!(answer.unwrap_err().to_string().contains("exit status: 1"));
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_when_its_time_is_up() {
    let (directory, program) = fake("echo $$ > \"$0.new\"; mv \"$0.new\" \"$0.pid\"; exec sleep 600");
    let asking = tokio::spawn(async move { largest(&program, PATIENCE).await });
    let pid = until("it runs", || std::fs::read_to_string(directory.path().join("nvidia-smi.pid")).ok()).await;
    tokio::time::pause();
    tokio::time::advance(PATIENCE).await;
    let answer = asking.await.unwrap();
    assert!(matches!(answer, Err(GpuError::Timeout(_))), "{answer:?}");
    let process = Path::new("/proc").join(pid.trim());
    until("it is gone", || (!process.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_program_that_never_stops_talking_is_cut_off() {
    let answer = asked("exec yes 'NVIDIA T400, 2048'").await;
    assert!(matches!(answer, Err(GpuError::Failed(_))), "{answer:?}");
}

#[tokio::test]
async fn a_machine_without_the_program_has_no_gpu() {
    let answer = largest(Path::new("/nowhere/nvidia-smi"), PATIENCE).await;
    assert!(matches!(answer, Err(GpuError::NotInstalled)), "{answer:?}");
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(largest(directory.path(), PATIENCE).await, Err(GpuError::Io(_))));
}

#[tokio::test]
async fn garbage_is_no_gpu() {
    assert_eq!(asked("head -c 100000 /dev/urandom | head -c 60000 | tr -d ,").await.unwrap(), None);
    assert_eq!(asked("echo 'No devices were found'").await.unwrap(), None);
    for garbage in ["", "\n\n", ",", " , ", ",5", "a", "a,", "a,b", "a,-1", "a,4294967296", "\u{7}\u{1b}, 4"] {
        assert_eq!(parse(garbage), None, "{garbage:?}");
    }
}

#[test]
fn a_line_that_is_garbage_does_not_hide_the_next_one() {
    assert_eq!(parse("WARNING: infoROM is corrupted\nNVIDIA T400, 2048\n"), gpu("NVIDIA T400", 2048));
    assert_eq!(parse("A, B, 5\r\n"), gpu("A, B", 5));
}

#[test]
fn a_gpu_that_shares_the_machines_memory_is_one() {
    assert_eq!(parse("NVIDIA GB10, [N/A]"), gpu("NVIDIA GB10", 0));
    assert_eq!(parse("Old, [Not Supported]\nNVIDIA T400, 2048"), gpu("NVIDIA T400", 2048));
}

#[test]
fn a_name_is_cut_between_characters_and_loses_what_moves_the_cursor() {
    let max = Limits::PRODUCTION.gpu_name_bytes_max;
    assert_eq!(clean("a\u{1b}[31mb\u{202e}\tc"), "a[31mbc");
    assert_eq!(clean(&"x".repeat(max + 1)), "x".repeat(max));
    // Each takes two bytes, and the first one begins at an odd place.
    assert_eq!(clean(&format!("x{}", "é".repeat(max))), format!("x{}", "é".repeat((max - 1) / 2)));
}

#[test]
fn whatever_it_is_called_makes_a_valid_record() {
    let voice = || Voice::new(SecretKey::from_seed([1; 32]), FederationId([0; 32]), 1, 1, Limits::PRODUCTION);
    let every_character: Vec<char> = ('\u{0}'..='\u{3000}').collect();
    for some in every_character.chunks(12) {
        let name: String = some.iter().collect();
        let record = NodeRecord {
            roles: Roles::Coordinator,
            location: String::new(),
            version: String::new(),
            services: vec![],
            multiaddrs: vec![],
            home: None,
            candidacy: Default::default(),
            hardware: Hardware { gpu: Some(Gpu { name: clean(&name), memory_mib: 1 }), ..Default::default() },
        };
        voice().sign(&Body::Node(record)).unwrap();
    }
}
