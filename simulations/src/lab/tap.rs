//! One end of a line: a TAP device in a namespace, whose frames are read and written as a file.
//!
//! It has no header in front of its frames and asks for no offloads, so the kernel hands out whole frames with checksums in them,
//! none longer than the MTU.

// The kernel takes the name of a device by an ioctl, and there is no safe call for it. Nothing else here is unsafe.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl};

use super::netns::Namespace;

/// Longer than any frame: the MTU is 1,500 bytes, and a header of Ethernet is 14.
pub(super) const FRAME_BYTES_MAX: usize = 2048;
/// What the kernel has room for, with the zero at the end.
const NAME_BYTES: usize = 16;

/// `_IOW('T', 202, int)` of linux/if_tun.h. (It says int, and is a `struct ifreq`.)
const TUNSETIFF: Opcode = 0x4004_54ca;
/// IFF_TAP, and no header in front of a frame (IFF_NO_PI).
const FLAGS: i16 = 0x0002 | 0x1000;

/// A device of a namespace. It goes when this does.
#[derive(Debug)]
pub(super) struct Tap {
    device: File,
}

/// `struct ifreq` of linux/if.h, where flags are asked for: 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: i16,
    rest: [u8; 22],
}

impl Tap {
    /// A new device of this name in a namespace. It is down.
    pub(super) fn new(namespace: &Namespace, name: &str) -> Result<Self> {
        ensure!(name.len() < NAME_BYTES, "{name} is too long a name for a device");
        let mut request = InterfaceRequest { name: [0; NAME_BYTES], flags: FLAGS, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let device = namespace.within(|| {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).context("cannot open /dev/net/tun")?;
            // SAFETY: TUNSETIFF reads one `struct ifreq`, which is what it is given, and keeps no pointer to it.
            unsafe { ioctl(&device, Setter::<TUNSETIFF, _>::new(request)) }
                .context("the kernel gives no TAP device")?;
            Ok(device)
        });
        let device = device.with_context(|| format!("cannot make {name} in {}", namespace.name()))?;
        Ok(Self { device: device.into() })
    }

    /// The next frame that its namespace has sent, if there is one now.
    pub(super) fn read<'a>(&self, buffer: &'a mut [u8; FRAME_BYTES_MAX]) -> Option<&'a [u8]> {
        let length = rustix::io::read(&self.device, &mut buffer[..]).ok()?;
        Some(&buffer[..length])
    }

    /// Hands a frame to its namespace. One that finds no room is lost, as on any line.
    pub(super) fn write(&self, frame: &[u8]) {
        match rustix::io::write(&self.device, frame) {
            // A device that is down takes nothing (EIO).
            Ok(_) | Err(Errno::AGAIN | Errno::IO | Errno::NOBUFS) => {}
            Err(error) => tracing::warn!(%error, "a frame was not taken"),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
