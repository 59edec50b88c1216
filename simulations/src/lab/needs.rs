//! Whether this machine can have a lab, and if not, what it lacks.

use std::path::Path;

use hedgerow_process::exit::Failure;

use crate::interop::peers::installed;

/// Programs that it takes, and the packages of Debian that they are in.
const PROGRAMS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("nft", "nftables"), ("conntrack", "conntrack"), ("curl", "curl")];

/// An error that says what is missing, if anything is.
pub(super) fn check() -> Result<(), Failure> {
    match lacking() {
        Some((what, advice)) => Err(Failure::usage(what).means("nothing was started").advice(advice)),
        None => Ok(()),
    }
}

/// What is missing for a lab here; none if nothing is.
pub fn missing() -> Option<String> {
    lacking().map(|(what, _)| what)
}

/// What is missing, and what can be done about it.
fn lacking() -> Option<(String, String)> {
    let lacking: Vec<_> = PROGRAMS.iter().filter(|(program, _)| !installed(program)).collect();
    if !lacking.is_empty() {
        let (programs, packages): (Vec<&str>, Vec<&str>) = lacking.into_iter().copied().unzip();
        return Some((
            format!("the lab needs {}", programs.join(", ")),
            format!("apt-get install {}", packages.join(" ")),
        ));
    }
    if !rustix::process::geteuid().is_root() {
        return Some((
            "the lab needs root: it makes network namespaces and devices, and removes them again".to_owned(),
            "the same with sudo".to_owned(),
        ));
    }
    if !Path::new("/dev/net/tun").exists() {
        let advice = "modprobe tun; in a container, pass the device on and allow NET_ADMIN and SYS_ADMIN".to_owned();
        return Some(("the lab needs /dev/net/tun: its lines end at such devices".to_owned(), advice));
    }
    None
}
