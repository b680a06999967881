//! Datagrams by the batch: recvmmsg(2) and sendmmsg(2).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Room for a fixed number of datagrams, and the headers through which the kernel fills and empties it.
pub struct Batch {
    headers: Vec<libc::mmsghdr>,
    buffers: Vec<Box<[u8]>>,
    // The headers point into these two; neither is ever moved or grown.
    _vectors: Box<[libc::iovec]>,
    _names: Box<[libc::sockaddr_storage]>,
}

impl Batch {
    /// Room for `count` datagrams of at most `size` bytes; with `addresses`, each keeps whom it came from.
    pub fn new(count: usize, size: usize, addresses: bool) -> Self {
        let mut buffers: Vec<Box<[u8]>> = (0..count).map(|_| vec![0; size].into_boxed_slice()).collect();
        let mut vectors: Box<[libc::iovec]> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: size })
            .collect();
        // SAFETY: zeros are a valid sockaddr_storage: a plain C struct without pointers.
        let mut names: Box<[libc::sockaddr_storage]> = (0..count).map(|_| unsafe { mem::zeroed() }).collect();
        let headers = vectors
            .iter_mut()
            .zip(names.iter_mut())
            .map(|(vector, name)| {
                // SAFETY: zeros are a valid mmsghdr: no name, no vector, no control data.
                let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                if addresses {
                    header.msg_hdr.msg_name = ptr::from_mut(name).cast();
                    header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
                }
                header
            })
            .collect();
        Self { headers, buffers, _vectors: vectors, _names: names }
    }

    /// How many datagrams there is room for.
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Take up to `capacity` datagrams without waiting; an error of kind `WouldBlock` if there is none.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        for (header, buffer) in self.headers.iter_mut().zip(&self.buffers) {
            // SAFETY: the vector is the one that `new` made for this header, and alive.
            unsafe { (*header.msg_hdr.msg_iov).iov_len = buffer.len() };
            if !header.msg_hdr.msg_name.is_null() {
                header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            }
        }
        // SAFETY: the headers point to buffers and names that live as long as `self`, with their true sizes.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// The datagram at `index` of those received.
    pub fn datagram(&self, index: usize) -> &[u8] {
        &self.buffers[index][..self.headers[index].msg_len as usize]
    }

    /// Send the first `count` of those received back to where they came from; returns how many the kernel took.
    pub fn reply(&mut self, socket: impl AsFd, count: usize) -> io::Result<usize> {
        for header in &mut self.headers[..count] {
            // SAFETY: the vector is the one that `new` made for this header, and alive.
            unsafe { (*header.msg_hdr.msg_iov).iov_len = header.msg_len as usize };
        }
        self.transmit(socket, count)
    }

    /// Fill the place at `index` with a datagram to send.
    pub fn put(&mut self, index: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        let length = fill(&mut self.buffers[index]);
        // SAFETY: the vector is the one that `new` made for this header, and alive.
        unsafe { (*self.headers[index].msg_hdr.msg_iov).iov_len = length.min(self.buffers[index].len()) };
    }

    /// Send the first `count` datagrams; returns how many the kernel took.
    pub fn transmit(&mut self, socket: impl AsFd, count: usize) -> io::Result<usize> {
        let count = count.min(self.headers.len());
        // SAFETY: the headers point to buffers and names that live as long as `self`, with their true sizes.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_batch_comes_and_goes_back_to_its_sender() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
        client.connect(server.local_addr().expect("address")).expect("connect");
        client.send(b"one").expect("send");
        client.send(b"three").expect("send");
        let mut batch = Batch::new(8, 1500, true);
        assert_eq!(batch.receive(&server).expect("receive"), 2);
        assert_eq!((batch.datagram(0), batch.datagram(1)), (&b"one"[..], &b"three"[..]));
        assert_eq!(batch.reply(&server, 2).expect("reply"), 2);
        let mut answer = [0; 16];
        assert_eq!(client.recv(&mut answer).expect("recv"), 3);
        assert_eq!(client.recv(&mut answer).expect("recv"), 5);
        assert_eq!(batch.receive(&server).expect_err("empty").kind(), io::ErrorKind::WouldBlock);
    }
}
