//! Functions of the C library that the whole process links against, in our version: on the simulation's thread the clocks follow
//! tokio's virtual one and randomness follows the seed, and nothing waits for the disk. All other threads get the real thing.
//!
//! Nothing here may allocate, panic, or read a thread-local that has a destructor: these functions are called from anywhere, also
//! before `main`.
#![allow(unsafe_code, unreachable_pub)] // The linker sees them. There is no other way to put one's own function in the place of one of the C library.

use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use libc::{c_int, c_uint, c_void, clockid_t, size_t, ssize_t, timespec};
use tokio::time::Instant;

use super::TimeError;

/// How long the machine has been up when the simulation begins: long enough to subtract anything from.
const UPTIME: Duration = Duration::from_secs(1_000_000);
/// The date when the simulation begins: 1 January 2026, 0:00 UTC.
const DATE: Duration = Duration::from_secs(1_767_225_600);

/// Nodes of one run, at most, whose disks can be full.
const NODES_MAX: usize = 4096;

thread_local! {
    /// Whether this is the simulation's thread.
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    /// Tokio's clock is being read: it may read ours.
    static READING: Cell<bool> = const { Cell::new(false) };
    /// When tokio's clock began.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The state of the generator.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// What the process sees that is running.
    static PROCESS: Cell<ProcessView> = const { Cell::new(ProcessView { wall_skew: Duration::ZERO }) };
    /// The nodes to whose disks nothing can be written, a bit each.
    static FULL_DISKS: Cell<[u64; NODES_MAX / 64]> = const { Cell::new([0; NODES_MAX / 64]) };
    /// Calls that came here: shows that the linker took these functions.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Lets the simulation see the real clocks: what a test of the tests wants.
static CLOCK_LEAKS: AtomicBool = AtomicBool::new(false);
/// How far the real wall clock is off, in seconds.
static MACHINE_DATE_OFFSET: AtomicI64 = AtomicI64::new(0);

/// What the machine is like on which the simulation runs: none of it may matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    /// Its date is off by this many seconds: stands for running on another day.
    pub date_offset_s: i64,
    /// The real clocks are seen by the simulation: then it matters, and the trace must show it.
    pub clock_leaks: bool,
}

/// Says what the machine is like; before anything is run.
pub fn set_machine(machine: Machine) {
    MACHINE_DATE_OFFSET.store(machine.date_offset_s, Ordering::Relaxed);
    CLOCK_LEAKS.store(machine.clock_leaks, Ordering::Relaxed);
}

/// The real clock, however the simulation stands to it: for saying how long something took.
pub fn wall_clock() -> Duration {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What is peculiar to the machine of one process of the simulation.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessView {
    /// How far its wall clock is ahead.
    pub wall_skew: Duration,
}

/// Who runs from now on sees this. Returns what was seen before.
pub fn enter_process(view: ProcessView) -> ProcessView {
    PROCESS.replace(view)
}

/// The directory of a node's disk, below that of the run: whoever of its tasks writes there, that is how its disk is known.
pub fn disk_of(node: u32) -> String {
    format!("node-{node}")
}

/// Nothing can be written to the disk of this node from now on, or something can be again.
pub fn set_disk_full(node: u32, full: bool) {
    let (word, bit) = (node as usize / 64, node % 64);
    let mut disks = FULL_DISKS.get();
    if let Some(word) = disks.get_mut(word) {
        *word = *word & !(1 << bit) | u64::from(full) << bit;
    }
    FULL_DISKS.set(disks);
}

/// Whether this open file is on a disk that is full.
fn is_on_full_disk(file: c_int) -> bool {
    let disks = FULL_DISKS.get();
    if disks == [0; NODES_MAX / 64] {
        return false;
    }
    // "/proc/self/fd/" and a number, with a zero at its end.
    let mut name = [0_u8; 32];
    let mut rest = &mut name[..31];
    if write!(rest, "/proc/self/fd/{file}").is_err() {
        return false;
    }
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: both are valid places, of the lengths that are said.
    let length = unsafe { libc::syscall(libc::SYS_readlink, name.as_ptr(), path.as_mut_ptr(), path.len()) };
    let path = usize::try_from(length).ok().and_then(|length| path.get(..length)).unwrap_or_default();
    let node = path.split(|byte| *byte == b'/').find_map(|part| {
        let digits = part.strip_prefix(b"node-")?;
        std::str::from_utf8(digits).ok()?.parse::<usize>().ok()
    });
    node.and_then(|node| Some(disks.get(node / 64)? >> (node % 64) & 1 == 1)).unwrap_or(false)
}

/// Makes this thread the simulation's.
pub(super) fn activate(seed: u64) -> Result<(), TimeError> {
    RANDOM.set(seed);
    ACTIVE.set(true);
    let (mut time, mut bytes) = (timespec { tv_sec: 0, tv_nsec: 0 }, [0_u8; 8]);
    let before = CALLS.get();
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    if CALLS.get() == before {
        return Err(TimeError::NotHooked("clock_gettime"));
    }
    let before = CALLS.get();
    // SAFETY: `bytes` is a valid place for that many bytes.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if CALLS.get() == before {
        return Err(TimeError::NotHooked("getrandom"));
    }
    Ok(())
}

/// Virtual time begins.
pub(super) fn begin(at: Instant) {
    BEGAN.set(Some(at));
}

/// The thread is one like any other again.
pub(super) fn deactivate() {
    ACTIVE.set(false);
    BEGAN.set(None);
}

/// Virtual time since it began. Zero outside a simulation.
pub(super) fn elapsed() -> Duration {
    let Some(began) = BEGAN.get() else { return Duration::ZERO };
    // Outside its runtime tokio asks the system's clock, which is the function below.
    if READING.replace(true) {
        return Duration::ZERO;
    }
    let elapsed = Instant::now().saturating_duration_since(began);
    READING.set(false);
    elapsed
}

fn is_active() -> bool {
    ACTIVE.try_with(Cell::get).unwrap_or(false)
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn is_wall(clock: clockid_t) -> bool {
    matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE)
}

/// The virtual reading of a clock; `None` for those that are none of ours, like the CPU time of a thread.
fn reading(clock: clockid_t) -> Option<(i64, i64)> {
    let base = match clock {
        clock if is_wall(clock) => DATE,
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_BOOTTIME => {
            UPTIME
        }
        _ => return None,
    };
    let skew = if is_wall(clock) { PROCESS.get().wall_skew } else { Duration::ZERO };
    let time = base.saturating_add(elapsed()).saturating_add(skew);
    Some((i64::try_from(time.as_secs()).unwrap_or(i64::MAX), i64::from(time.subsec_nanos())))
}

/// POSIX.
///
/// # Safety
/// `time` must be a valid place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if is_active() {
        CALLS.set(CALLS.get() + 1);
        if !CLOCK_LEAKS.load(Ordering::Relaxed)
            && let Some((seconds, nanoseconds)) = reading(clock)
        {
            // SAFETY: the caller's promise.
            unsafe { *time = timespec { tv_sec: seconds, tv_nsec: nanoseconds } };
            return 0;
        }
    }
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if result == 0 && is_wall(clock) {
        // SAFETY: the kernel has written to it.
        unsafe { (*time).tv_sec = (*time).tv_sec.saturating_add(MACHINE_DATE_OFFSET.load(Ordering::Relaxed)) };
    }
    result as c_int
}

/// Linux.
///
/// # Safety
/// `buffer` must be a valid place for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if !is_active() {
        // SAFETY: the caller's promise.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as ssize_t;
    }
    CALLS.set(CALLS.get() + 1);
    if length > 0 {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        let mut state = RANDOM.get();
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&draw(&mut state).to_le_bytes()[..chunk.len()]);
        }
        RANDOM.set(state);
    }
    length as ssize_t
}

/// BSD.
///
/// # Safety
/// `buffer` must be a valid place for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getentropy(buffer: *mut c_void, length: size_t) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { getrandom(buffer, length, 0) } == length as ssize_t { 0 } else { -1 }
}

/// POSIX. The disk of a simulation is not asked to survive a loss of power, and there are hundreds of nodes on it. What is written to
/// a full disk fails here, since all that a node writes is flushed.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    if is_active() {
        if !is_on_full_disk(file) {
            return 0;
        }
        // SAFETY: the place of this thread's error number.
        unsafe { *libc::__errno_location() = libc::ENOSPC };
        return -1;
    }
    // SAFETY: takes a number.
    unsafe { libc::syscall(libc::SYS_fsync, file) as c_int }
}
