//! The way to a ring that a launcher has named: by its path in /proc, or where that leads elsewhere or
//! nowhere, as in a container, by a socket of the ring's name, over which the launcher hands it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::ptr;
use std::time::{Duration, Instant};

use ttalloc_ring::ring::{AttachError, Producer, parse_variable};

use crate::descriptors::Low;

/// How long the launcher may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A ring's name, as a launcher gives it: `PATH@ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    path: PathBuf,
    /// 16 hexadecimal digits.
    id: u64,
}

impl Name {
    /// Reads a name; None if it is none.
    pub fn parse(name: &[u8]) -> Option<Name> {
        let (path, id) = parse_variable(OsStr::from_bytes(name))?;
        path.is_absolute().then(|| Name { path: path.to_owned(), id })
    }
}

/// A ring that was reached.
pub struct Reached {
    pub producer: Producer,
    /// This process's pid as the launcher sees it, if it has told: it does over the socket.
    pub pid: Option<u32>,
}

/// Why there is no ring.
#[derive(Debug)]
pub enum Unreachable {
    /// The launcher is gone. Nobody needs to hear of it.
    Gone,
    /// This process lacks something that it may have at the next try.
    Passing,
    /// The user can do something about it.
    Refused(String),
}

/// Reaches the ring of that name. No descriptor stays open.
pub fn ring(name: &Name) -> Result<Reached, Unreachable> {
    let _low = Low::take();
    let first = match by_path(name) {
        Ok(producer) => return Ok(Reached { producer, pid: None }),
        Err(why @ Unreachable::Passing) => return Err(why),
        Err(why) => why,
    };
    match by_socket(name) {
        Ok(Some((file, pid))) => match Producer::attach_file(file, name.id) {
            Ok(producer) => Ok(Reached { producer, pid: Some(pid) }),
            Err(why) => Err(unusable(&name.socket(), why)),
        },
        // Nobody is there. What the path leads to may still be worth a word.
        Ok(None) => Err(first),
        Err(why) => Err(why),
    }
}

/// Asks the launcher for this process's pid as it sees it; 0 if it doesn't tell.
pub fn told_pid(name: &Name) -> u32 {
    let _low = Low::take();
    by_socket(name).ok().flatten().map_or(0, |(_, pid)| pid)
}

fn by_path(name: &Name) -> Result<Producer, Unreachable> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let shown = name.path.display();
    match OpenOptions::new().read(true).write(true).custom_flags(flags).open(&name.path) {
        Ok(file) => Producer::attach_file(file, name.id).map_err(|why| unusable(&shown, why)),
        Err(why) if is_passing(&why) => Err(Unreachable::Passing),
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => Err(Unreachable::Refused(
            format!("{shown}, the launcher's ring, can't be opened: {why}; {AS_SAME_USER}"),
        )),
        Err(_) => Err(Unreachable::Gone),
    }
}

const AS_SAME_USER: &str = "start it as the user who runs ttalloc-run";

/// Why a ring is of no use that was found at `place`.
fn unusable(place: &dyn std::fmt::Display, why: AttachError) -> Unreachable {
    match why {
        AttachError::Io(why) if is_passing(&why) => Unreachable::Passing,
        why => Unreachable::Refused(format!(
            "what is at {place} can't be used: {why}; run it under the ttalloc-run that belongs to {}, or unset TTALLOC_RING",
            crate::environment::library().to_string_lossy(),
        )),
    }
}

/// Whether an error may be gone at the next try.
pub fn is_passing(why: &io::Error) -> bool {
    matches!(why.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
}

impl Name {
    /// The socket's name, as ss(8) shows it.
    fn socket(&self) -> String {
        format!("@ttalloc-{:016x}", self.id)
    }
}

/// What a launcher answers at its socket: the ring, and this process's pid as it sees it. None if there
/// is no launcher.
fn by_socket(name: &Name) -> Result<Option<(File, u32)>, Unreachable> {
    let shown = name.socket();
    let refused = |why: &str, advice: &str| {
        Unreachable::Refused(format!("the launcher at the socket {shown} {why}; {advice}"))
    };
    let io = |why: io::Error| match why.kind() {
        _ if is_passing(&why) => Unreachable::Passing,
        io::ErrorKind::WouldBlock => {
            refused("did not answer in time", "look whether it is stopped")
        }
        _ => refused(&format!("can't be asked: {why}"), "look whether it still runs"),
    };
    let Some(socket) = connect(&shown).map_err(io)? else { return Ok(None) };
    let peer: libc::ucred = option(&socket, libc::SO_PEERCRED).map_err(io)?;
    // SAFETY: takes nothing and can't fail.
    let own = unsafe { libc::geteuid() };
    if peer.uid != own && peer.uid != 0 {
        return Err(refused("is another user's", AS_SAME_USER));
    }
    match receive(&socket).map_err(io)? {
        Some(answer) => Ok(Some(answer)),
        None => Err(refused("gave no ring", AS_SAME_USER)),
    }
}

/// Connects to an abstract socket, given with an `@` for the zero byte; None if nobody listens there.
fn connect(name: &str) -> io::Result<Option<OwnedFd>> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if socket < 0 {
        let why = io::Error::last_os_error();
        // Without such sockets, or the right to them, nobody can be there.
        return if is_passing(&why) { Err(why) } else { Ok(None) };
    }
    // SAFETY: the kernel has just returned it, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: plain numbers and bytes, which may all be zero.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().skip(1).zip(name.as_bytes().iter().skip(1)) {
        *to = *from as libc::c_char;
    }
    let length = mem::offset_of!(libc::sockaddr_un, sun_path) + name.len();
    let until = Instant::now() + PATIENCE;
    loop {
        set_time(&socket, libc::SO_SNDTIMEO, until)?;
        let address = (&raw const address).cast();
        // SAFETY: an address of that length.
        if unsafe { libc::connect(socket.as_raw_fd(), address, length as libc::socklen_t) } == 0 {
            return Ok(Some(socket));
        }
        let why = io::Error::last_os_error();
        match why.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EISCONN) => return Ok(Some(socket)),
            Some(libc::ECONNREFUSED | libc::EPERM | libc::EACCES) => return Ok(None),
            _ => return Err(why),
        }
    }
}

/// Gives the socket's calls what is left of the time.
fn set_time(socket: &OwnedFd, which: i32, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let time = libc::timeval {
        tv_sec: left.as_secs() as libc::time_t,
        // None at all would stand for ever.
        tv_usec: libc::suseconds_t::from(left.subsec_micros().max(1)),
    };
    let (value, length) = ((&raw const time).cast(), size_of_val(&time) as libc::socklen_t);
    // SAFETY: an option's value with its length.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, which, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The value of a socket's option.
fn option<T: Copy>(socket: &OwnedFd, which: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    let (place, room) = (value.as_mut_ptr().cast(), &raw mut length);
    // SAFETY: room of that length.
    if unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, which, place, room) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled it in, with numbers.
    Ok(unsafe { value.assume_init() })
}

/// Receives a descriptor and four bytes; None if what comes is something else.
fn receive(socket: &OwnedFd) -> io::Result<Option<(File, u32)>> {
    const DESCRIPTOR: u32 = size_of::<RawFd>() as u32;
    let mut bytes = [0_u8; 4];
    // Room for a message with one descriptor, aligned as its head must be.
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: plain numbers and pointers, which may all be zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: computes a number.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(DESCRIPTOR) } as usize;
    let until = Instant::now() + PATIENCE;
    let count = loop {
        set_time(socket, libc::SO_RCVTIMEO, until)?;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_WAITALL;
        // SAFETY: a message whose parts all have room of the length they say.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        if count >= 0 {
            break count;
        }
        let why = io::Error::last_os_error();
        if why.kind() != io::ErrorKind::Interrupted {
            return Err(why);
        }
    };
    // SAFETY: the message as the kernel has left it.
    let head: *const libc::cmsghdr = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if head.is_null() {
        return Ok(None);
    }
    // SAFETY: inside `control`.
    let about = unsafe { ptr::read(head) };
    // SAFETY: computes a number.
    let whole = unsafe { libc::CMSG_LEN(DESCRIPTOR) } as usize;
    let is_descriptor = about.cmsg_level == libc::SOL_SOCKET
        && about.cmsg_type == libc::SCM_RIGHTS
        && about.cmsg_len as usize == whole;
    if !is_descriptor {
        return Ok(None);
    }
    // SAFETY: as above.
    let place = unsafe { libc::CMSG_DATA(head) };
    // SAFETY: the message's data, which is one descriptor.
    let descriptor = unsafe { ptr::read_unaligned(place.cast::<RawFd>()) };
    // SAFETY: the kernel has just made it for us.
    let file = unsafe { File::from_raw_fd(descriptor) };
    Ok((count == 4).then(|| (file, u32::from_le_bytes(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_and_an_id() {
        let name = Name::parse(b"/proc/1/fd/3@00000000000000ff").unwrap();
        assert_eq!(name, Name { path: "/proc/1/fd/3".into(), id: 255 });
        assert_eq!(name.socket(), "@ttalloc-00000000000000ff");
        for none in [
            "",
            "nonsense",
            "/proc/1/fd/3",
            "/proc/1/fd/3@",
            "/proc/1/fd/3@ff",
            "/proc/1/fd/3@+0000000000000ff",
            "/proc/1/fd/3@000000000000000g",
            "proc/1/fd/3@00000000000000ff",
            "@00000000000000ff",
        ] {
            assert_eq!(Name::parse(none.as_bytes()), None, "{none}");
        }
    }
}
