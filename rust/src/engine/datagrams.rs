//! Datagrams by the batch: recvmmsg(2) and sendmmsg(2), where each came from, and what it takes to answer it.
//!
//! Facts, and what follows from them:
//!
//! * A datagram costs the kernel about as much to hand over as a system call costs, so they are taken and sent by the
//!   batch.  Buffers are as large as the largest datagram and are used again and again; a page that no datagram has
//!   reached is no memory.
//! * A socket that is bound to every address answers from the one that routing picks, which is another one than was
//!   asked on a host that has several, and then the asker drops the answer.  So each datagram says where it was sent to
//!   (PKTINFO, in ip(7) and ipv6(7)), and its answer leaves from there.
//! * Datagrams of one size to one address may go through the network's layers as one (UDP_SEGMENT, in udp(7)): answers
//!   to whoever has many in flight are most often of this kind.
//! * An error of sendmmsg(2) is lost where something was sent before it, and comes again with what it is about.

use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::RawFd;
use std::ptr;

/// Datagrams that are taken, or sent, by one call of the system.
pub const DATAGRAMS: usize = 64;
/// The longest datagram that is taken whole: 65,507 bytes is the most over UDP on IPv4, Unix sockets may send more.
pub const LONGEST: usize = 65_535;
/// From one buffer to the next: not a multiple of the cache's ways, or all datagrams would share a few of its lines.
const STRIDE: usize = LONGEST + 1 + 3 * 64;
/// Room for PKTINFO of IPv6, the size of segments, and the headers of both.
const CONTROL: usize = 96;
/// The control message with the size of segments; the libc crate has it for few targets.
const UDP_SEGMENT: libc::c_int = 103;
/// The kernel takes so many segments, and bytes, as one.
const SEGMENTS: usize = 64;
const SEGMENTED: usize = 65_000;

/// The longest name of a socket: a Unix path of 108 bytes, and the family.
const NAME: usize = size_of::<libc::sockaddr_un>();
/// A name, and one of our own addresses with its interface.
const WHOLE: usize = NAME + 20;

/// Where a datagram came from, and to which of our addresses: what an answer to it needs.
#[derive(Clone)]
pub struct Origin {
    bytes: [u8; WHOLE],
    name: u8,
    local: u8,
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Origin({:?} to {:?})", self.name(), self.local())
    }
}

impl PartialEq for Origin {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.key() == other.key()
    }
}

impl Origin {
    pub(super) fn new(name: &[u8], local: &[u8]) -> Self {
        let mut bytes = [0; WHOLE];
        let (name, local) = (&name[..name.len().min(NAME)], &local[..local.len().min(20)]);
        bytes[..name.len()].copy_from_slice(name);
        bytes[name.len()..][..local.len()].copy_from_slice(local);
        Origin { bytes, name: name.len() as u8, local: local.len() as u8 }
    }

    /// The peer's name, as the kernel writes it; empty if it has none.
    pub fn name(&self) -> &[u8] {
        &self.bytes[..self.name.into()]
    }

    /// Our own address, 4 bytes of IPv4 or 16 of IPv6 and 4 of its interface's number; empty if it is not known.
    pub fn local(&self) -> &[u8] {
        &self.bytes[self.name.into()..][..self.local.into()]
    }

    /// All that tells it from others.
    pub fn key(&self) -> &[u8] {
        &self.bytes[..usize::from(self.name) + usize::from(self.local)]
    }

    /// The address family, a number of the system's.
    pub fn family(&self) -> i32 {
        match self.name().first_chunk::<2>() {
            Some(family) => i32::from(u16::from_ne_bytes(*family)),
            None => libc::AF_UNSPEC,
        }
    }

    fn may_be_segmented(&self) -> bool {
        matches!(self.family(), libc::AF_INET | libc::AF_INET6)
    }
}

/// Control messages of one datagram, aligned as the kernel wants their headers.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// One datagram of a batch.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// What came: the first [`LONGEST`] bytes of it.
    pub data: &'a [u8],
    /// Where it came from.
    pub origin: Origin,
    /// Whether it was longer than the buffer.
    pub truncated: bool,
}

/// Room for what recvmmsg(2) gives.
pub struct Inbox {
    headers: Box<[libc::mmsghdr]>,
    buffers: Box<[u8]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    // The headers point into it, and it points into the buffers; nothing of this is ever moved or grown.
    _vectors: Box<[libc::iovec]>,
    count: usize,
}

// SAFETY: the pointers in it point to what it owns, and are used by methods that have it exclusively.
unsafe impl Send for Inbox {}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Inbox({} datagrams)", self.count)
    }
}

impl Default for Inbox {
    fn default() -> Self {
        // Zeros from the system are no memory until something is written into them.
        let mut buffers = vec![0; DATAGRAMS * STRIDE].into_boxed_slice();
        // SAFETY: a plain C struct of numbers, for which zeros are valid.
        let empty: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut names = vec![empty; DATAGRAMS].into_boxed_slice();
        let mut controls = vec![Control([0; CONTROL]); DATAGRAMS].into_boxed_slice();
        let mut vectors: Box<[libc::iovec]> = buffers
            .chunks_exact_mut(STRIDE)
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: LONGEST })
            .collect();
        let headers = (0..DATAGRAMS)
            .map(|index| {
                let mut header = header();
                header.msg_hdr.msg_iov = &raw mut vectors[index];
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_name = (&raw mut names[index]).cast();
                header.msg_hdr.msg_control = (&raw mut controls[index]).cast();
                header
            })
            .collect();
        Inbox { headers, buffers, names, controls, _vectors: vectors, count: 0 }
    }
}

impl Inbox {
    /// Take what has come, up to [`DATAGRAMS`]; how many there are.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none; else what an earlier answer has met, or what is wrong with the socket.
    pub fn receive(&mut self, fd: RawFd) -> io::Result<usize> {
        self.count = 0;
        for header in &mut self.headers {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: the headers point to buffers, names and controls that live as long as `self`, with their true sizes.
        let count = unsafe {
            libc::recvmmsg(fd, self.headers.as_mut_ptr(), DATAGRAMS as _, libc::MSG_DONTWAIT, ptr::null_mut())
        };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        Ok(self.count)
    }

    /// The datagram at `index` of those received.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Datagram<'_>> {
        let header = self.headers[..self.count].get(index)?;
        let length = (header.msg_len as usize).min(LONGEST);
        Some(Datagram {
            data: &self.buffers[index * STRIDE..][..length],
            origin: self.origin(index, &header.msg_hdr),
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }

    fn origin(&self, index: usize, header: &libc::msghdr) -> Origin {
        let length = (header.msg_namelen as usize).min(size_of::<libc::sockaddr_storage>());
        // SAFETY: the name is a plain C struct of at least so many bytes, all of which were zeros before the kernel
        // wrote into them.
        let name = unsafe { std::slice::from_raw_parts((&raw const self.names[index]).cast::<u8>(), length) };
        let mut local = [0; 20];
        let control = &self.controls[index].0[..CONTROL.min(header.msg_controllen as _)];
        let known = local_in(control, &mut local);
        Origin::new(name, &local[..known])
    }
}

/// Find the address of ours in the control messages, in the form of [`Origin::local`]; how many bytes it has.
fn local_in(mut control: &[u8], local: &mut [u8; 20]) -> usize {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    while let Some((head, rest)) = control.split_at_checked(HEADER) {
        let number = |at: usize| head[at..].first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        let length = head.first_chunk().map_or(0, |bytes| usize::from_ne_bytes(*bytes));
        let (level, kind) =
            (number(offset_of!(libc::cmsghdr, cmsg_level)), number(offset_of!(libc::cmsghdr, cmsg_type)));
        let data = &rest[..length.saturating_sub(HEADER).min(rest.len())];
        match (level, kind, data.len()) {
            // in_pktinfo: interface, the local address to send from, the address in the header.  The interface is
            // left to routing: naming it would break answers that leave through another one.
            (libc::IPPROTO_IP, libc::IP_PKTINFO, 12..) => {
                local[..4].copy_from_slice(&data[4..8]);
                return 4;
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20..) => {
                local.copy_from_slice(&data[..20]);
                // A link-local address means nothing without its interface; any other is left to routing as well.
                if data[0] != 0xFE || data[1] & 0xC0 != 0x80 {
                    local[16..].fill(0);
                }
                return 20;
            }
            _ => {}
        }
        // The next header is where this one ends, aligned.
        let step = length.max(HEADER).next_multiple_of(size_of::<usize>());
        control = control.get(step..).unwrap_or_default();
    }
    0
}

fn header() -> libc::mmsghdr {
    // SAFETY: zeros are a valid header: no name, no vector, no control messages.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// What is to be sent, and whom it answers.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// One datagram.
    pub data: &'a [u8],
    /// To whom, and from where.
    pub origin: &'a Origin,
}

/// Sends answers, those that may go as one together.
pub struct Outbox {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    /// How many answers each header stands for.
    counts: Vec<usize>,
    /// Whether the kernel has not refused segments yet.
    segments: bool,
}

// SAFETY: the pointers in it are written before each call of the system and not used after it.
unsafe impl Send for Outbox {}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Outbox(segments: {})", self.segments)
    }
}

impl Outbox {
    /// For a socket; `segments` says whether to try to send answers of one size to one peer as one.
    pub fn new(segments: bool) -> Self {
        Outbox {
            headers: Vec::with_capacity(DATAGRAMS),
            vectors: Vec::with_capacity(DATAGRAMS),
            names: Vec::with_capacity(DATAGRAMS),
            controls: Vec::with_capacity(DATAGRAMS),
            counts: Vec::with_capacity(DATAGRAMS),
            segments,
        }
    }

    /// Send `answers` in their order; those that the kernel refuses are told to `refused`, and the others still go.
    pub fn send(&mut self, fd: RawFd, answers: &[Answer<'_>], mut refused: impl FnMut(usize, io::Error)) {
        let mut done = 0;
        // Answers that were refused together go one by one, up to here.
        let mut alone = 0;
        while done < answers.len() {
            let end = answers.len().min(done + DATAGRAMS);
            self.prepare(&answers[done..end], self.segments && done >= alone);
            // SAFETY: the headers point to names, controls and vectors of `self`, and through these to the answers,
            // all of which live and keep their places during the call.
            let sent =
                unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), self.headers.len() as _, libc::MSG_DONTWAIT) };
            match usize::try_from(sent) {
                Ok(sent) => done += self.counts[..sent].iter().sum::<usize>(),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    let together = self.counts.first().copied().unwrap_or(1);
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    if together > 1 {
                        // A device, a route or a size with which they cannot go as one, or no room for all at once.
                        if error.kind() != io::ErrorKind::WouldBlock {
                            self.segments = false;
                        }
                        alone = done + together;
                        continue;
                    }
                    refused(done, error);
                    done += 1;
                }
            }
        }
        self.headers.clear();
    }

    /// Write headers for the answers.
    fn prepare(&mut self, answers: &[Answer<'_>], segments: bool) {
        self.headers.clear();
        self.vectors.clear();
        self.names.clear();
        self.controls.clear();
        self.counts.clear();
        // All there is room for is there before the first pointer is taken.
        self.vectors.reserve(answers.len());
        self.names.reserve(answers.len());
        self.controls.reserve(answers.len());
        let mut rest = answers;
        while let Some(first) = rest.first() {
            let count = if segments { together(rest) } else { 1 };
            let (origin, start) = (first.origin, self.vectors.len());
            for answer in &rest[..count] {
                let data = answer.data;
                self.vectors.push(libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() });
            }
            let mut header = header();
            header.msg_hdr.msg_iov = &raw mut self.vectors[start];
            header.msg_hdr.msg_iovlen = count as _;
            let name = origin.name();
            if !name.is_empty() {
                // SAFETY: a plain C struct of numbers, for which zeros are valid.
                let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
                // SAFETY: a name is at most as long as the storage for names of all kinds.
                unsafe { ptr::copy_nonoverlapping(name.as_ptr(), (&raw mut storage).cast::<u8>(), name.len()) };
                self.names.push(storage);
                header.msg_hdr.msg_name = self.names.as_mut_ptr().wrapping_add(self.names.len() - 1).cast();
                header.msg_hdr.msg_namelen = name.len() as _;
            }
            let mut control = Control([0; CONTROL]);
            let mut length = put_local(&mut control, origin.local());
            if count > 1 {
                let size = (first.data.len() as u16).to_ne_bytes();
                length += put(&mut control, length, libc::SOL_UDP, UDP_SEGMENT, &size);
            }
            if length > 0 {
                self.controls.push(control);
                header.msg_hdr.msg_control = self.controls.as_mut_ptr().wrapping_add(self.controls.len() - 1).cast();
                header.msg_hdr.msg_controllen = length as _;
            }
            self.headers.push(header);
            self.counts.push(count);
            rest = &rest[count..];
        }
    }
}

/// How many of the first answers may go as one: to one peer, of one size, of which only the last may be shorter.
fn together(answers: &[Answer<'_>]) -> usize {
    let Some(first) = answers.first() else { return 0 };
    let (size, origin) = (first.data.len(), first.origin);
    if size == 0 || !origin.may_be_segmented() {
        return 1;
    }
    let most = SEGMENTS.min(SEGMENTED / size).max(1);
    let mut count = 1;
    for answer in &answers[1..answers.len().min(most)] {
        let length = answer.data.len();
        if length == 0 || length > size || (!ptr::eq(answer.origin, origin) && answer.origin != origin) {
            break;
        }
        count += 1;
        if length < size {
            break;
        }
    }
    count
}

/// Put the control message that makes an answer leave from `local`; the room that it takes.
fn put_local(control: &mut Control, local: &[u8]) -> usize {
    match local.len() {
        4 => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(local);
            put(control, 0, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
        }
        20 => put(control, 0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, local),
        _ => 0,
    }
}

/// Put a control message at `at`; the room that it takes, up to where the next one may begin.
fn put(control: &mut Control, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let place = &mut control.0[at..];
    place[..size_of::<usize>()].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
    place[offset_of!(libc::cmsghdr, cmsg_level)..][..4].copy_from_slice(&level.to_ne_bytes());
    place[offset_of!(libc::cmsghdr, cmsg_type)..][..4].copy_from_slice(&kind.to_ne_bytes());
    place[HEADER..][..data.len()].copy_from_slice(data);
    (HEADER + data.len()).next_multiple_of(size_of::<usize>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    fn asks_for_destinations(socket: &UdpSocket) {
        let on: libc::c_int = 1;
        // SAFETY: the option takes a number, which lives during the call.
        let done = unsafe {
            let (level, name) = (libc::IPPROTO_IP, libc::IP_PKTINFO);
            libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size_of_val(&on) as _)
        };
        assert_eq!(done, 0);
    }

    fn received(inbox: &Inbox, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|index| inbox.get(index).unwrap().data.to_vec()).collect()
    }

    #[test]
    fn a_batch_is_answered_from_the_address_that_was_asked() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        asks_for_destinations(&server);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        // A connected socket takes datagrams from the address that it asked only.
        client.connect(("127.0.0.9", server.local_addr().unwrap().port())).unwrap();
        for question in [&b"one"[..], b"", b"three"] {
            client.send(question).unwrap();
        }
        let mut inbox = Inbox::default();
        assert_eq!(inbox.receive(server.as_raw_fd()).unwrap(), 3);
        assert_eq!(received(&inbox, 3), [&b"one"[..], b"", b"three"]);
        let asked: Vec<_> = (0..3).map(|index| inbox.get(index).unwrap()).collect();
        assert!(asked.iter().all(|datagram| datagram.origin.local() == [127, 0, 0, 9] && !datagram.truncated));
        for segments in [false, true] {
            let answers: Vec<_> =
                asked.iter().map(|asked| Answer { data: asked.data, origin: &asked.origin }).collect();
            Outbox::new(segments).send(server.as_raw_fd(), &answers, |_, error| panic!("{error}"));
            let mut buffer = [0; 16];
            for expected in [&b"one"[..], b"", b"three"] {
                let length = client.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], expected);
            }
        }
        assert_eq!(inbox.receive(server.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(inbox.get(0).is_none());
    }

    #[test]
    fn answers_of_one_size_go_as_one_and_arrive_as_many() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        client.send(b"?").unwrap();
        let mut inbox = Inbox::default();
        inbox.receive(server.as_raw_fd()).unwrap();
        let origin = inbox.get(0).unwrap().origin;
        let texts: Vec<Vec<u8>> =
            (0..100u8).map(|number| vec![number; if number % 40 == 39 { 3 } else { 7 }]).collect();
        let answers: Vec<_> = texts.iter().map(|data| Answer { data, origin: &origin }).collect();
        assert_eq!(together(&answers), 40);
        assert_eq!(together(&answers[39..]), 1);
        Outbox::new(true).send(server.as_raw_fd(), &answers, |_, error| panic!("{error}"));
        let mut buffer = [0; 16];
        for text in &texts {
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], text);
        }
    }

    #[test]
    fn what_cannot_be_sent_is_told_and_the_rest_still_goes() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        client.send(b"?").unwrap();
        let mut inbox = Inbox::default();
        inbox.receive(server.as_raw_fd()).unwrap();
        let origin = inbox.get(0).unwrap().origin;
        let long = vec![0; 65_508];
        let texts = [&b"first"[..], &long, b"last", b"more"];
        let answers = texts.map(|data| Answer { data, origin: &origin });
        let mut refused = Vec::new();
        Outbox::new(true)
            .send(server.as_raw_fd(), &answers, |index, error| refused.push((index, error.raw_os_error())));
        assert_eq!(refused, [(1, Some(libc::EMSGSIZE))]);
        let mut buffer = [0; 16];
        for text in [&b"first"[..], b"last", b"more"] {
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], text);
        }
    }

    #[test]
    fn a_unix_datagram_that_is_too_long_is_cut_and_says_so() {
        let folder = std::env::temp_dir().join(format!("longshore-datagrams-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let server = UnixDatagram::bind(folder.join("server")).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.connect(folder.join("server")).unwrap();
        client.send(&vec![7; LONGEST + 1]).unwrap();
        client.send(&vec![8; LONGEST]).unwrap();
        let mut inbox = Inbox::default();
        assert_eq!(inbox.receive(server.as_raw_fd()).unwrap(), 2);
        let (cut, whole) = (inbox.get(0).unwrap(), inbox.get(1).unwrap());
        assert_eq!((cut.data.len(), cut.truncated), (LONGEST, true));
        assert_eq!((whole.data.len(), whole.truncated), (LONGEST, false));
        assert!(whole.origin.name().is_empty());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
