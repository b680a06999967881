//! Bytes that came and are not consumed yet, and every way to cut them: the twin of `longshore.buffers`.
//!
//! A buffer of an idle connection holds no memory: whoever reads borrows a large one from the [`Pool`], and what is
//! left over when a turn ends moves into one of its own size.

use std::sync::Arc;

use memchr::memmem;

use super::framing::{Cut, Cutter, Framing, position};
use super::stream::CHUNK;

/// Buffers that are lent out while they have something in them.
#[derive(Debug, Default)]
pub struct Pool {
    spare: Vec<Vec<u8>>,
}

impl Pool {
    /// Spare buffers that are kept: as many as are in use at once in one turn, and some.
    const KEPT: usize = 8;
    /// What one has room for: a chunk behind what was left over before it.
    const CAPACITY: usize = CHUNK + CHUNK / 4;

    /// An empty buffer with room for a chunk.
    #[inline]
    pub fn take(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(Self::CAPACITY))
    }

    /// Take a buffer back; one of another size than the pool's is freed.
    #[inline]
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() == Self::CAPACITY && self.spare.len() < Self::KEPT {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

/// The answer to an attempt to take something.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<'a> {
    /// Here it is.
    Piece(&'a [u8]),
    /// It has not come yet.
    NeedMore,
    /// No end within the limit, in so many bytes.
    TooLong(usize),
    /// The stream ended after so many bytes of it.
    Short(usize),
    /// The stream ended before it.
    Closed,
    /// What came is no message.
    Bad,
}

/// Where a message is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    At(usize, usize),
    NeedMore,
    Closed,
    Bad,
}

/// Input of one connection, in order, with the framing that cuts its messages.
#[derive(Debug)]
pub struct Input {
    data: Vec<u8>,
    start: usize,
    /// Bytes that belong to a message which is still partial: they are its framing's business, whose limit bounds them.
    judged: usize,
    /// Bytes in which what was last sought does not begin.
    searched: usize,
    /// What was last sought in vain.
    sought: Box<[u8]>,
    cutter: Cutter,
    framing: Arc<Framing>,
    /// Whether the stream has ended.
    pub ended: bool,
}

impl Input {
    /// Nothing has come yet.
    pub fn new(framing: Arc<Framing>) -> Self {
        Input {
            data: Vec::new(),
            start: 0,
            judged: 0,
            searched: 0,
            sought: Box::default(),
            cutter: Cutter::default(),
            framing,
            ended: false,
        }
    }

    /// What cuts messages.
    #[inline]
    pub fn framing(&self) -> &Framing {
        &self.framing
    }

    /// Cut by another framing from the byte after the last message on.
    pub fn set_framing(&mut self, framing: Arc<Framing>) {
        self.framing = framing;
        self.unjudge();
    }

    /// Everything that is buffered.
    #[inline]
    pub fn rest(&self) -> &[u8] {
        &self.data[self.start..]
    }

    /// Whether anything at all is buffered.
    #[inline]
    pub fn unread(&self) -> bool {
        self.start < self.data.len()
    }

    /// Bytes that wait to be taken, without those of a partial message.
    #[inline]
    pub fn size(&self) -> usize {
        self.rest().len() - self.judged
    }

    /// Bytes of a skipped message that were dropped, if one is being skipped.
    pub fn skipped(&self) -> Option<u64> {
        self.cutter.skipping.then_some(self.cutter.discarded)
    }

    /// A buffer to read into, with room for a chunk behind what is there.
    #[inline]
    pub fn room(&mut self, pool: &mut Pool) -> &mut Vec<u8> {
        if self.start == self.data.len() {
            self.start = 0;
            if self.data.capacity() < CHUNK {
                self.data = pool.take();
            }
            self.data.clear();
        } else if self.data.capacity() - self.data.len() < CHUNK {
            let rest = self.data.len() - self.start;
            let mut larger = if rest <= CHUNK / 4 { pool.take() } else { Vec::with_capacity(rest + rest / 2 + CHUNK) };
            larger.extend_from_slice(self.rest());
            self.start = 0;
            pool.give(std::mem::replace(&mut self.data, larger));
        }
        &mut self.data
    }

    /// Append what came.
    pub fn feed(&mut self, data: &[u8]) {
        if self.start == self.data.len() {
            self.data.clear();
            self.start = 0;
        }
        self.data.extend_from_slice(data);
    }

    /// Hold no more memory than what is there needs.
    #[inline]
    pub fn settle(&mut self, pool: &mut Pool) {
        if self.data.capacity() == 0 {
            return;
        }
        let rest = self.data.len() - self.start;
        if rest == 0 {
            self.start = 0;
            pool.give(std::mem::take(&mut self.data));
        } else if rest * 4 < self.data.capacity() {
            let own = self.rest().to_vec();
            self.start = 0;
            pool.give(std::mem::replace(&mut self.data, own));
        }
    }

    /// Forget everything that is buffered.
    pub fn discard(&mut self) {
        self.unjudge();
        self.data = Vec::new();
        self.start = 0;
    }

    /// Everything that is buffered, taken out.
    pub fn take_all(&mut self) -> Vec<u8> {
        let rest = self.rest().to_vec();
        self.discard();
        rest
    }

    /// Up to `count` bytes.
    pub fn take_some(&mut self, count: usize) -> Taken<'_> {
        self.unjudge();
        if !self.unread() && !self.ended && count > 0 {
            return Taken::NeedMore;
        }
        self.piece(count.min(self.data.len() - self.start))
    }

    /// Exactly `count` bytes.
    pub fn take_exactly(&mut self, count: usize) -> Taken<'_> {
        self.unjudge();
        if self.rest().len() >= count {
            return self.piece(count);
        }
        self.short()
    }

    /// A line with its end; the rest at the end of the stream.
    #[inline]
    pub fn take_line(&mut self, limit: usize) -> Taken<'_> {
        self.unjudge();
        match self.find(b"\n", limit) {
            Ok(Some(end)) => self.piece(end),
            Ok(None) if self.ended => self.piece(self.data.len() - self.start),
            Ok(None) => Taken::NeedMore,
            Err(size) => Taken::TooLong(size),
        }
    }

    /// A line with its end, or its first `size` bytes.
    pub fn take_line_up_to(&mut self, size: usize) -> Taken<'_> {
        self.unjudge();
        if let Ok(Some(end)) = self.find(b"\n", size) {
            return self.piece(end);
        }
        let there = self.rest().len();
        if there >= size || self.ended { self.piece(there.min(size)) } else { Taken::NeedMore }
    }

    /// Bytes up to and with `separator`.
    pub fn take_until(&mut self, separator: &[u8], limit: usize) -> Taken<'_> {
        self.unjudge();
        match self.find(separator, limit) {
            Ok(Some(end)) => self.piece(end),
            Ok(None) => self.short(),
            Err(size) => Taken::TooLong(size),
        }
    }

    /// What is there, without taking it.
    pub fn peek(&mut self) -> Taken<'_> {
        self.unjudge();
        if !self.unread() && !self.ended { Taken::NeedMore } else { Taken::Piece(self.rest()) }
    }

    /// The next message of the framing.
    #[inline]
    pub fn take_message(&mut self) -> Taken<'_> {
        match self.cut_message() {
            Message::At(start, stop) => Taken::Piece(&self.data[start..stop]),
            Message::NeedMore => Taken::NeedMore,
            Message::Closed => Taken::Closed,
            Message::Bad => Taken::Bad,
        }
    }

    /// As `take_message`, for whoever has to look at something else before at the message.
    #[inline]
    pub(super) fn cut_message(&mut self) -> Message {
        loop {
            match self.cutter.cut(&self.framing, &self.data[self.start..]) {
                Cut::Message(start, stop, size) => {
                    let at = self.start;
                    self.start += size;
                    self.judged = 0;
                    self.cutter.consumed();
                    return Message::At(at + start, at + stop);
                }
                Cut::Oversized => continue,
                Cut::Skip(count) => {
                    self.start += count;
                    self.judged = 0;
                    self.cutter.discarded += count as u64;
                    self.cutter.consumed();
                    if count > 0 {
                        continue;
                    }
                }
                Cut::NeedMore => {}
                Cut::Bad => return Message::Bad,
            }
            self.judged = self.rest().len();
            return match (self.ended, self.judged > 0 || self.cutter.skipping) {
                (false, _) => Message::NeedMore,
                (true, true) => Message::Bad,
                (true, false) => Message::Closed,
            };
        }
    }

    /// The bytes of a message that was just cut.
    #[inline]
    pub(super) fn bytes(&self, start: usize, stop: usize) -> &[u8] {
        &self.data[start..stop]
    }

    #[inline]
    fn piece(&mut self, count: usize) -> Taken<'_> {
        let at = self.start;
        self.start += count;
        self.searched = 0;
        self.cutter.consumed();
        Taken::Piece(&self.data[at..at + count])
    }

    fn short(&self) -> Taken<'_> {
        match (self.ended, self.rest().len()) {
            (false, _) => Taken::NeedMore,
            (true, 0) => Taken::Closed,
            (true, size) => Taken::Short(size),
        }
    }

    /// The offset behind `separator`; the number of bytes without one if they are over the limit.
    #[inline]
    fn find(&mut self, separator: &[u8], limit: usize) -> Result<Option<usize>, usize> {
        let window = &self.data[self.start..];
        let window = &window[..window.len().min(limit)];
        let from = if self.searched > 0 && *self.sought == *separator {
            (self.searched + 1).saturating_sub(separator.len()).min(window.len())
        } else {
            0
        };
        let found = match separator {
            [byte] => position(*byte, &window[from..]),
            _ => memmem::find(&window[from..], separator),
        };
        if let Some(at) = found {
            return Ok(Some(from + at + separator.len()));
        }
        self.searched = window.len();
        if self.searched > 0 && *self.sought != *separator {
            self.sought = separator.into();
        }
        let there = self.data.len() - self.start;
        if there >= limit { Err(there) } else { Ok(None) }
    }

    /// What is buffered is not looked at as messages any more.
    #[inline]
    fn unjudge(&mut self) {
        if self.judged > 0 || self.cutter.skipping {
            self.judged = 0;
            self.cutter = Cutter::default();
            self.searched = 0;
        }
    }
}
