//! Where a message ends, and how one is put on the wire: the built-in framings of `longshore.framing`.
//!
//! The only place that cuts.  It is told the bytes that are there and answers with offsets; it copies nothing, and a
//! length that a peer announces is compared with the limit before anything is done with it.  What is wrong with bad
//! input is put into words by the Python twin of each framing, which is given the same bytes.

use memchr::{memchr, memmem};

const VARINT_BYTES: usize = 10;
const NETSTRING_DIGITS: usize = 19;
/// Bytes through which a delimiter is sought with narrow instructions first.
#[cfg(target_arch = "x86_64")]
const NEAR: usize = 256;
/// Bytes that these take at once.
#[cfg(target_arch = "x86_64")]
const WIDTH: usize = 16;

/// How a length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// So many bytes, the highest first.
    Big(usize),
    /// So many bytes, the lowest first.
    Little(usize),
    /// LEB128.
    Varint,
}

/// What ends a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing does: there are no messages.
    None,
    /// What arrives is a message.
    Raw,
    /// A delimiter.
    Delimited {
        /// One byte or more.
        delimiter: Box<[u8]>,
        /// Whether a carriage return in front of it belongs to it.
        strip_return: bool,
        /// Whether messages keep it.
        keep_end: bool,
    },
    /// Its length comes first.
    Prefixed(Prefix),
    /// So many bytes.
    Fixed(usize),
    /// A netstring.
    Netstring,
}

/// One framing, shared by all connections that use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framing {
    /// What ends a message.
    pub kind: Kind,
    /// Bytes that a message may have.
    pub max_size: usize,
    /// Whether what is larger is skipped, instead of ending the connection.
    pub skip: bool,
}

impl Framing {
    /// The framing of a connection that has none.
    pub const NONE: Framing = Framing { kind: Kind::None, max_size: 0, skip: false };

    /// Append `message` as it goes on the wire; false, and nothing appended, if this framing cannot express it.
    #[inline]
    pub fn encode(&self, message: &[u8], wire: &mut Vec<u8>) -> bool {
        match &self.kind {
            Kind::None => {}
            Kind::Raw if message.is_empty() => return false,
            Kind::Raw => {}
            Kind::Delimited { delimiter, strip_return, keep_end } => {
                return self.encode_delimited(message, wire, delimiter, *strip_return, *keep_end);
            }
            Kind::Fixed(size) if message.len() != *size => return false,
            Kind::Fixed(_) => {}
            Kind::Prefixed(_) | Kind::Netstring if message.len() > self.max_size => return false,
            Kind::Prefixed(prefix) => {
                if !put_length(*prefix, message.len() as u64, wire) {
                    return false;
                }
            }
            Kind::Netstring => {
                wire.extend_from_slice(message.len().to_string().as_bytes());
                wire.push(b':');
                wire.extend_from_slice(message);
                wire.push(b',');
                return true;
            }
        }
        wire.extend_from_slice(message);
        true
    }

    #[inline]
    fn encode_delimited(
        &self,
        message: &[u8],
        wire: &mut Vec<u8>,
        delimiter: &[u8],
        strip_return: bool,
        keep_end: bool,
    ) -> bool {
        let mut content = message.len();
        if keep_end {
            if !message.ends_with(delimiter) {
                return false;
            }
            content -= delimiter.len();
            if strip_return && message.ends_with(b"\r\n") {
                content -= 1;
            }
        } else if strip_return && message.last() == Some(&b'\r') {
            return false;
        }
        if content > self.max_size {
            return false;
        }
        let start = wire.len();
        if let [byte] = delimiter {
            // The delimiter of one byte is either inside, or not: no search over both together is needed.
            if position(*byte, message).is_some_and(|at| !(keep_end && at + 1 == message.len())) {
                return false;
            }
            wire.reserve(message.len() + 1);
            wire.extend_from_slice(message);
            if !keep_end {
                wire.push(*byte);
            }
            return true;
        }
        wire.extend_from_slice(message);
        if !keep_end {
            wire.extend_from_slice(delimiter);
        }
        // Over message and delimiter together: of `a-` and the delimiter `--` a reader finds `a`.
        let whole = &wire[start..];
        if memmem::find(whole, delimiter) != Some(whole.len() - delimiter.len()) {
            wire.truncate(start);
            return false;
        }
        true
    }
}

fn put_length(prefix: Prefix, length: u64, wire: &mut Vec<u8>) -> bool {
    match prefix {
        Prefix::Big(size) | Prefix::Little(size) if size < 8 && length >> (8 * size) != 0 => return false,
        Prefix::Big(size) => wire.extend_from_slice(&length.to_be_bytes()[8 - size..]),
        Prefix::Little(size) => wire.extend_from_slice(&length.to_le_bytes()[..size]),
        Prefix::Varint => {
            let mut left = length;
            while left > 0x7F {
                wire.push(left as u8 & 0x7F | 0x80);
                left >>= 7;
            }
            wire.push(left as u8);
        }
    }
    true
}

/// What a look at the bytes has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A message lies between the first two offsets, and so many bytes go with it.
    Message(usize, usize, usize),
    /// A message is over the limit, and is skipped from here on.
    Oversized,
    /// So many bytes belong to the message that is skipped; none if all that came did.
    Skip(usize),
    /// There is no whole message.
    NeedMore,
    /// The bytes are no message, now and for ever.
    Bad,
}

/// What is remembered of one connection between two looks.
#[derive(Debug, Default)]
pub struct Cutter {
    /// Bytes in which no delimiter begins.
    scanned: usize,
    /// Whether an oversized message is being skipped.
    pub skipping: bool,
    /// Bytes of it that are to come, where that is known.
    left: u64,
    /// Bytes of it that were dropped.
    pub discarded: u64,
    /// Whether the comma behind a skipped netstring is due.
    comma_due: bool,
    /// Whether the bytes were found to be no message.
    failed: bool,
}

impl Cutter {
    /// Look for the first message in `data`; a second look gives the same answer.
    #[inline]
    pub fn cut(&mut self, framing: &Framing, data: &[u8]) -> Cut {
        if self.failed {
            return Cut::Bad;
        }
        let found = match &framing.kind {
            Kind::None => Cut::NeedMore,
            Kind::Raw if data.is_empty() => Cut::NeedMore,
            Kind::Raw => Cut::Message(0, data.len(), data.len()),
            Kind::Fixed(size) if data.len() < *size => Cut::NeedMore,
            Kind::Fixed(size) => Cut::Message(0, *size, *size),
            Kind::Delimited { delimiter, strip_return, keep_end } => {
                self.cut_delimited(framing, data, delimiter, *strip_return, *keep_end)
            }
            Kind::Prefixed(prefix) => self.cut_prefixed(framing, data, *prefix),
            Kind::Netstring => self.cut_netstring(framing, data),
        };
        self.failed = found == Cut::Bad;
        found
    }

    /// The bytes of the answer are gone.
    #[inline]
    pub fn consumed(&mut self) {
        self.scanned = 0;
    }

    #[inline]
    fn cut_delimited(
        &mut self,
        framing: &Framing,
        data: &[u8],
        delimiter: &[u8],
        strip_return: bool,
        keep_end: bool,
    ) -> Cut {
        let size = delimiter.len();
        if self.skipping {
            let found = find(delimiter, data, self.scanned, data.len());
            self.skipping = found.is_none();
            return Cut::Skip(found.map_or(data.len().saturating_sub(size - 1), |at| at + size));
        }
        // A delimiter that begins behind the limit ends an oversized message in any case.  The search never looks
        // further, so the answer does not depend on how much came at once.
        let limit = framing.max_size + usize::from(strip_return);
        let window = data.len().min(limit + size);
        if let Some(at) = find(delimiter, data, self.scanned, window) {
            self.scanned = at;
            let stop = if strip_return && at > 0 && data[at - 1] == b'\r' { at - 1 } else { at };
            if stop <= framing.max_size {
                return Cut::Message(0, if keep_end { at + size } else { stop }, at + size);
            }
        } else {
            // Only the last bytes can still be the beginning of a delimiter.
            self.scanned = self.scanned.max((window + 1).saturating_sub(size));
            if window < limit + size {
                return Cut::NeedMore;
            }
        }
        self.oversized(framing)
    }

    fn cut_prefixed(&mut self, framing: &Framing, data: &[u8], prefix: Prefix) -> Cut {
        if self.skipping {
            return self.skip_counted(data);
        }
        let (start, length) = match header(prefix, data) {
            Header::Length(start, length) => (start, length),
            Header::NeedMore => return Cut::NeedMore,
            Header::Bad => return Cut::Bad,
        };
        if length <= framing.max_size as u64 {
            let stop = start + length as usize;
            return if data.len() >= stop { Cut::Message(start, stop, stop) } else { Cut::NeedMore };
        }
        self.left = length.saturating_add(start as u64);
        self.oversized(framing)
    }

    fn cut_netstring(&mut self, framing: &Framing, data: &[u8]) -> Cut {
        if self.skipping {
            return self.skip_counted(data);
        }
        if self.comma_due {
            // The one behind a skipped message: without it the bytes that follow mean nothing.
            return match data.first() {
                None => Cut::NeedMore,
                Some(b',') => {
                    self.comma_due = false;
                    Cut::Skip(1)
                }
                Some(_) => Cut::Bad,
            };
        }
        let mut length: u64 = 0;
        for (at, byte) in data.iter().take(NETSTRING_DIGITS + 1).enumerate() {
            match byte {
                b':' if at > 0 => {
                    let start = at + 1;
                    if length > framing.max_size as u64 {
                        self.left = length.saturating_add(start as u64);
                        self.comma_due = framing.skip;
                        return self.oversized(framing);
                    }
                    let stop = start + length as usize;
                    return match data.get(stop) {
                        None => Cut::NeedMore,
                        Some(b',') => Cut::Message(start, stop, stop + 1),
                        Some(_) => Cut::Bad,
                    };
                }
                b'0'..=b'9' if at == 0 || length > 0 => {
                    length = length.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                }
                _ => return Cut::Bad,
            }
        }
        if data.len() > NETSTRING_DIGITS { Cut::Bad } else { Cut::NeedMore }
    }

    fn oversized(&mut self, framing: &Framing) -> Cut {
        if !framing.skip {
            return Cut::Bad;
        }
        self.skipping = true;
        self.discarded = 0;
        Cut::Oversized
    }

    fn skip_counted(&mut self, data: &[u8]) -> Cut {
        let count = (data.len() as u64).min(self.left);
        self.left -= count;
        self.skipping = self.left > 0;
        Cut::Skip(count as usize)
    }
}

/// Where `byte` is first.
///
/// `memchr` takes the widest instructions that this processor has.  It finds out which at each call, and that costs more
/// than to look through a short line; so what is near is sought with those that every such processor has.
#[inline]
pub(super) fn position(byte: u8, window: &[u8]) -> Option<usize> {
    #[allow(unused_mut)] // it stays where it is on other processors
    let mut at = 0;
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8};
        let near = window.len().min(NEAR);
        while near >= WIDTH && at < near {
            // The last look goes over some bytes again, in which nothing was found.
            let from = at.min(near - WIDTH);
            // SAFETY: SSE2 is part of x86_64, and so many bytes from there on are within the slice.
            let found = unsafe {
                let bytes = _mm_loadu_si128(window.as_ptr().add(from).cast());
                _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8)))
            };
            if found != 0 {
                return Some(from + found.trailing_zeros() as usize);
            }
            at = from + WIDTH;
        }
    }
    // Not called for nothing, as that is what most replies come to.
    if at == window.len() { None } else { memchr(byte, &window[at..]).map(|found| at + found) }
}

#[inline]
fn find(delimiter: &[u8], data: &[u8], from: usize, to: usize) -> Option<usize> {
    let window = data.get(from..to)?;
    let found = match delimiter {
        [byte] => position(*byte, window),
        _ => memmem::find(window, delimiter),
    };
    found.map(|at| at + from)
}

enum Header {
    Length(usize, u64),
    NeedMore,
    Bad,
}

fn header(prefix: Prefix, data: &[u8]) -> Header {
    match prefix {
        Prefix::Big(size) | Prefix::Little(size) => {
            let Some(bytes) = data.get(..size) else { return Header::NeedMore };
            let push = |length: u64, byte: &u8| length << 8 | u64::from(*byte);
            let length = match prefix {
                Prefix::Big(_) => bytes.iter().fold(0, push),
                _ => bytes.iter().rev().fold(0, push),
            };
            Header::Length(size, length)
        }
        Prefix::Varint => {
            let mut length: u128 = 0;
            for (at, byte) in data.iter().take(VARINT_BYTES).enumerate() {
                length |= u128::from(byte & 0x7F) << (7 * at);
                if byte & 0x80 == 0 {
                    return u64::try_from(length).map_or(Header::Bad, |length| Header::Length(at + 1, length));
                }
            }
            if data.len() >= VARINT_BYTES { Header::Bad } else { Header::NeedMore }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_found_where_memchr_finds_it_whatever_the_length() {
        for length in (0..80).chain(250..300) {
            assert_eq!(position(b'|', &vec![b'-'; length]), None);
            for first in 0..length {
                let mut window = vec![b'-'; length];
                window[first] = b'|';
                window[length - 1] = b'|';
                assert_eq!(position(b'|', &window), memchr(b'|', &window), "{first} of {length}");
            }
        }
    }
}
