//! Where a program finds the ring if the launcher's /proc/PID/fd isn't in its sight, as in a pid namespace
//! of its own: an abstract Unix socket that has the ring's name. Whoever connects, and is the same user or
//! root, gets the ring's memory, and is told its own pid as it is known here.

use std::fs::File;
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::geteuid;

/// How many are answered at a time.
const AT_ONCE: usize = 64;

/// The socket.
pub struct Door {
    listener: UnixListener,
}

impl Door {
    /// Opens it for the ring with this id.
    pub fn open(id: u64) -> io::Result<Door> {
        let address = SocketAddr::from_abstract_name(format!("ttalloc-{id:016x}"))?;
        let listener = UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        Ok(Door { listener })
    }

    /// Answers who has come, with the ring's memory. Never waits.
    pub fn answer(&self, ring: &File) {
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                // What goes wrong is the other's loss; it looks after itself.
                Ok((peer, _)) => drop(hand_out(&peer, ring)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn hand_out(peer: &UnixStream, ring: &File) -> io::Result<()> {
    let who = credentials(peer)?;
    let own = geteuid().as_raw();
    if who.uid != own && who.uid != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // 0, if there is no such process in our pid namespace.
    let pid = u32::try_from(who.pid).unwrap_or_default();
    let fds = [ring.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(peer, &[IoSlice::new(&pid.to_le_bytes())], &mut control, flags)?;
    Ok(())
}

/// Who connected, as it was then (`unix(7)`).
fn credentials(peer: &UnixStream) -> io::Result<libc::ucred> {
    let mut who = MaybeUninit::<libc::ucred>::zeroed();
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    let option = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let to = who.as_mut_ptr().cast();
    // SAFETY: memory of the size that is given.
    match unsafe { libc::getsockopt(peer.as_raw_fd(), option.0, option.1, to, &mut size) } {
        // SAFETY: three integers: zeros, or what the kernel wrote.
        0 => Ok(unsafe { who.assume_init() }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::io::{IoSliceMut, Read, Write};
    use std::os::unix::fs::MetadataExt;

    fn connect(id: u64) -> UnixStream {
        let address = SocketAddr::from_abstract_name(format!("ttalloc-{id:016x}")).unwrap();
        UnixStream::connect_addr(&address).unwrap()
    }

    #[test]
    fn who_knocks_gets_the_memory_and_its_pid() {
        let mut ring = tempfile::tempfile().unwrap();
        ring.write_all(b"records").unwrap();
        let id = 0xfedc_0000_0000_0000 | u64::from(std::process::id());
        let door = Door::open(id).unwrap();
        door.answer(&ring);
        let peers = [connect(id), connect(id)];
        door.answer(&ring);
        for peer in peers {
            let mut bytes = [0; 8];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut bytes)];
            let got = recvmsg(&peer, &mut into, &mut control, RecvFlags::empty()).unwrap();
            assert_eq!(got.bytes, 4);
            let file = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            let file = File::from(file.unwrap());
            assert_eq!(file.metadata().unwrap().ino(), ring.metadata().unwrap().ino());
            assert_eq!(u32::from_le_bytes(bytes[..4].try_into().unwrap()), std::process::id());
            assert_eq!((&peer).read(&mut [0; 1]).unwrap(), 0, "and no more");
        }
        assert!(Door::open(id).is_err(), "there is one of a name");
    }
}
