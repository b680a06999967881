//! Accepting one connection: by one call of the system, which also makes it non-blocking and ours alone.
//!
//! Whether to accept at all, and what a refusal means, is decided above (`longshore.reactor.acceptor`): it depends on
//! limits that the engine does not know, and it is said once for both reactors.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::net::addr::SocketAddrArg;
use rustix::net::{SocketFlags, acceptfrom_with};

use super::datagrams::Origin;

/// The next connection of a listening socket, and whose it is.
///
/// # Errors
///
/// What accept(2) says, `WouldBlock` if nobody waits.
pub fn accept(listener: RawFd) -> io::Result<(OwnedFd, Origin)> {
    // SAFETY: whoever owns the listening socket keeps it open during this call, in which alone it is borrowed.
    let listener = unsafe { BorrowedFd::borrow_raw(listener) };
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let name = match &peer {
        // SAFETY: the address lives while it is looked at, and has so many bytes.
        Some(peer) => unsafe {
            peer.with_sockaddr(|start, length| {
                Origin::new(std::slice::from_raw_parts(start.cast::<u8>(), length as usize), &[])
            })
        },
        None => Origin::new(&[], &[]),
    };
    Ok((socket, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_connection_comes_with_the_name_of_its_peer_and_does_not_block() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(accept(listener.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = accept(listener.as_raw_fd()).unwrap();
        assert_eq!(peer.name()[2..4], client.local_addr().unwrap().port().to_be_bytes());
        assert_eq!(peer.name()[4..8], [127, 0, 0, 1]);
        let error = TcpStream::from(socket).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_unix_peer_without_a_name_has_none() {
        let path = std::env::temp_dir().join(format!("longshore-acceptor-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (_socket, peer) = accept(listener.as_raw_fd()).unwrap();
        assert!(peer.name().len() <= 2);
        std::fs::remove_file(path).unwrap();
    }
}
