//! Main memory: what the machine has, or what its control groups leave of it to this process.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// These files hold a few lines.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// In bytes. `root` is `/`, or a test's. `None` where there is no `/proc` to tell.
pub(super) fn bytes(root: &Path) -> Option<u64> {
    let installed = installed(&read(&root.join("proc/meminfo"))?)?;
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    Some(groups.lines().filter_map(|group| limit(root, group)).fold(installed, u64::min))
}

/// `MemTotal:       65655516 kB`, where kB are KiB.
fn installed(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest limit of one group and of those around it: `0::/path` of version 2, `N:memory:/path` of version 1. In a
/// container the path may be the one outside, and the container's own group is at the root: so that is asked too.
fn limit(root: &Path, group: &str) -> Option<u64> {
    let mut parts = group.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (base, file) = if controllers.is_empty() {
        (root.join("sys/fs/cgroup"), "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        (root.join("sys/fs/cgroup/memory"), "memory.limit_in_bytes")
    } else {
        return None;
    };
    // Outside of its namespace a group is shown as `/../…`: what is there is not ours to see.
    let inside = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
    let own = inside.fold(base.clone(), |path, part| path.join(part));
    // `max` and files that are not there set no limit; version 1 without a limit says a number beyond any memory.
    own.ancestors()
        .take_while(|path| path.starts_with(&base))
        .filter_map(|path| read(&path.join(file))?.trim().parse().ok())
        .min()
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       65655516 kB\nMemFree:         1000000 kB\n";
    const INSTALLED: u64 = 65_655_516 * 1024;

    /// What a machine with these files has.
    fn with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        bytes(root.path())
    }

    #[test]
    fn a_machine_has_what_is_installed() {
        assert_eq!(with(&[("proc/meminfo", MEMINFO)]), Some(INSTALLED));
        assert_eq!(with(&[("proc/meminfo", MEMINFO), ("proc/self/cgroup", "0::/\n")]), Some(INSTALLED));
    }

    #[test]
    fn the_lowest_limit_of_the_groups_around_the_process_counts() {
        let limits = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/user.slice/node.scope\n"),
            ("sys/fs/cgroup/user.slice/node.scope/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/other.slice/memory.max", "1\n"),
        ];
        assert_eq!(with(&limits), Some(2_147_483_648));
    }

    #[test]
    fn in_a_container_the_limit_at_the_root_counts() {
        let first_version = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/ab\n4:hugetlb,memory:/docker/ab\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(with(&first_version), Some(1_073_741_824));
        let second_version = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/../other\n"),
            ("sys/fs/cgroup/memory.max", "1073741824\n"),
        ];
        assert_eq!(with(&second_version), Some(1_073_741_824));
    }

    #[test]
    fn a_limit_beyond_the_installed_memory_is_none() {
        let unlimited = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(with(&unlimited), Some(INSTALLED));
    }

    #[test]
    fn what_the_system_does_not_tell_is_unknown() {
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("proc/meminfo", "MemTotal: much\n")]), None);
        assert_eq!(with(&[("proc/meminfo", "MemTotal: 99999999999999999999 kB\n")]), None);
        let strange =
            [("proc/meminfo", MEMINFO), ("proc/self/cgroup", "\n:\n::\n0:\n"), ("sys/fs/cgroup/memory.max", "x")];
        assert_eq!(with(&strange), Some(INSTALLED));
    }
}
