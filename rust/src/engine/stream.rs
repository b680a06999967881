//! Streams: the twin of `longshore.reactor.stream`, and the only place where the engine reads and writes sockets.
//!
//! Facts, and what follows from them:
//!
//! * close(2) with unread input makes the kernel send a reset, which destroys output that the peer has not read yet.
//!   So a stream ends in steps: flush, shutdown(SHUT_WR), read and drop; only then it is finished.
//! * Whoever drives the engine owns the descriptor.  So "finished" is an answer: the driver closes it.
//! * Most batches are answered by one write that the kernel takes whole.  So nobody is told that output has drained
//!   unless somebody could have seen it pending.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::buffer::{Input, Message, Pool};
use super::counters::Counters;
use super::deadlines::{Due, Timeouts, Watch};
use super::framing::Framing;
use super::poller::{Poller, READ, WRITE};
use super::slab::{Slab, Token};
use super::wheel::Wheel;

/// Bytes asked of the kernel at once, and read ahead of whoever consumes them.
pub const CHUNK: usize = 65_536;
/// Put-off output is sent once there is this much of it.
const COALESCE: usize = 65_536;
/// Bytes that are read and dropped for a peer that goes on sending after we closed.
const LINGER_BYTES: usize = 1 << 20;

/// Where a stream is in its life; the table is `longshore.lifecycle.CONNECTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not started.
    Opening,
    /// In use.
    Open,
    /// Flushing and lingering.
    Closing,
    /// Gone.
    Closed,
}

impl State {
    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            State::Opening => "opening",
            State::Open => "open",
            State::Closing => "closing",
            State::Closed => "closed",
        }
    }
}

/// What a stream is made with.
#[derive(Debug)]
pub struct Options {
    /// The descriptor; its owner keeps it open until the stream is finished.
    pub fd: RawFd,
    /// What cuts its messages.
    pub framing: Arc<Framing>,
    /// Its deadlines.
    pub timeouts: Arc<Timeouts>,
    /// Output that the peer may leave untaken before it is read from no more.
    pub max_pending: usize,
}

/// What has to be told after a call; the driver does it once no part of the engine is borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// Pending output fell to where writing may go on.
    pub drained: bool,
    /// The stream is gone: close its descriptor, and tell.
    pub finished: bool,
    /// The error that ended it, unless it was ending already.
    pub error: Option<Errno>,
}

impl Effects {
    /// Whether there is nothing to tell.
    #[inline]
    pub fn is_empty(self) -> bool {
        !self.drained && !self.finished && self.error.is_none()
    }

    /// Both.
    pub fn and(self, other: Effects) -> Effects {
        Effects {
            drained: self.drained || other.drained,
            finished: self.finished || other.finished,
            error: self.error.or(other.error),
        }
    }
}

/// What reading has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Nothing to tell.
    Nothing,
    /// Input came, or its end.
    Arrived,
    /// The stream is gone.
    Gone(Effects),
}

/// The next thing to do with the messages of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Handle this one.
    Message(&'a [u8]),
    /// Wait for more.
    Dry,
    /// Wait until the peer takes its replies.
    Held,
    /// Nothing any more: the stream is not open.
    Over,
    /// The peer has ended its side, and all was handled.
    PeerClosed,
    /// What came is no message.
    Bad,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    fd: RawFd,
    /// Where it is in its life.
    pub state: State,
    /// What the poller watches it for.
    interest: u8,
    /// What came.
    pub input: Input,
    /// What is to be sent, from `wire_start` on.
    wire: Vec<u8>,
    wire_start: usize,
    /// What was never sent, once it is gone.
    lost: usize,
    /// Whether output waits for the end of the present callback.
    deferred: bool,
    /// Whether the kernel has left output untaken.
    blocked: bool,
    /// Whether a handler waits for input.
    hungry: bool,
    /// Whether anything came since our last write: then the peer is owed an answer.
    pub owing: bool,
    /// Whether writes may wait for the end of the callback that makes them.
    pub coalescing: bool,
    /// Whether somebody wants to hear of all output that leaves.
    pub telling: bool,
    /// Whether replies are only gathered, until `uncork`.
    corked: bool,
    write_ended: bool,
    /// Whether the end of our side was sent.
    shut: bool,
    dropped: usize,
    /// Bytes that came.
    pub received: u64,
    /// Bytes that the kernel took.
    pub sent: u64,
    /// Messages handed out by `step`.
    pub messages: u64,
    /// Its deadlines.
    pub watch: Watch,
    timeouts: Arc<Timeouts>,
    max_pending: usize,
    timer: Option<Token>,
    armed: f64,
}

/// All streams of one reactor, and what they share.
#[derive(Debug)]
pub struct Engine<T> {
    streams: Slab<Box<Stream>>,
    /// What waits for the kernel; none once the reactor is closed.
    pub poller: Option<Arc<Poller>>,
    /// What falls due: a stream's deadline, or something of the driver's.
    pub wheel: Wheel<Result<Token, T>>,
    /// What was counted.
    pub counters: Counters,
    /// Streams whose output was put off.
    pub dirty: VecDeque<Token>,
    pool: Pool,
}

/// What streams use of their engine.
struct Kit<'a, T> {
    poller: Option<&'a Poller>,
    wheel: &'a mut Wheel<Result<Token, T>>,
    counters: &'a mut Counters,
    dirty: &'a mut VecDeque<Token>,
    pool: &'a mut Pool,
}

impl<T> Engine<T> {
    /// An engine without streams.
    ///
    /// # Errors
    ///
    /// Out of descriptors, or memory.
    pub fn new() -> io::Result<Self> {
        Ok(Engine {
            streams: Slab::default(),
            poller: Some(Arc::new(Poller::new()?)),
            wheel: Wheel::default(),
            counters: Counters::default(),
            dirty: VecDeque::new(),
            pool: Pool::default(),
        })
    }

    /// Take a socket in; nothing is done with it before `start`.
    pub fn open(&mut self, options: Options, now: f64) -> Token {
        self.counters.opened += 1;
        self.streams.insert(Box::new(Stream {
            fd: options.fd,
            state: State::Opening,
            interest: 0,
            input: Input::new(options.framing),
            wire: Vec::new(),
            wire_start: 0,
            lost: 0,
            deferred: false,
            blocked: false,
            hungry: false,
            owing: false,
            coalescing: false,
            telling: false,
            corked: false,
            write_ended: false,
            shut: false,
            dropped: 0,
            received: 0,
            sent: 0,
            messages: 0,
            watch: Watch::new(now),
            timeouts: options.timeouts,
            max_pending: options.max_pending,
            timer: None,
            armed: f64::INFINITY,
        }))
    }

    /// Forget a stream whose owner is gone.
    pub fn remove(&mut self, token: Token) {
        if self.stream(token).is_some_and(|stream| stream.state != State::Closed) {
            self.with(token, |stream, kit| stream.release(kit));
        }
        self.streams.remove(token);
    }

    /// The stream of a token.
    #[inline]
    pub fn stream(&self, token: Token) -> Option<&Stream> {
        self.streams.get(token).map(Box::as_ref)
    }

    /// The stream of a token, to be changed.
    #[inline]
    pub fn stream_mut(&mut self, token: Token) -> Option<&mut Stream> {
        self.streams.get_mut(token).map(Box::as_mut)
    }

    #[inline]
    fn with<R: Default>(&mut self, token: Token, call: impl FnOnce(&mut Stream, &mut Kit<'_, T>) -> R) -> R {
        let Some(stream) = self.streams.get_mut(token) else { return R::default() };
        let mut kit = Kit {
            poller: self.poller.as_deref(),
            wheel: &mut self.wheel,
            counters: &mut self.counters,
            dirty: &mut self.dirty,
            pool: &mut self.pool,
        };
        call(stream, &mut kit)
    }

    /// Begin to be open.
    pub fn start(&mut self, token: Token) {
        if let Some(stream) = self.stream_mut(token) {
            stream.state = State::Open;
        }
    }

    /// Watch the socket for just what can be done now.
    pub fn update(&mut self, token: Token) {
        self.with(token, |stream, kit| stream.update(kit, token));
    }

    /// Say whether a handler waits for input.
    #[inline]
    pub fn want_input(&mut self, token: Token, hungry: bool, now: f64) {
        self.with(token, |stream, kit| stream.want_input(kit, token, hungry, now));
    }

    /// The poller found the socket ready; true if it is to be flushed, and if it is to be read.
    #[inline]
    pub fn wanted(&self, token: Token, events: u8) -> u8 {
        self.stream(token).map_or(0, |stream| stream.interest & events)
    }

    /// Read once.
    #[inline]
    pub fn read(&mut self, token: Token, now: f64) -> Read {
        let Some(stream) = self.streams.get_mut(token) else { return Read::Nothing };
        let mut kit = Kit {
            poller: self.poller.as_deref(),
            wheel: &mut self.wheel,
            counters: &mut self.counters,
            dirty: &mut self.dirty,
            pool: &mut self.pool,
        };
        stream.read(&mut kit, token, now)
    }

    /// Hand out the next message; the answer stands until something else is asked.
    #[inline]
    pub fn step(&mut self, token: Token) -> Step<'_> {
        let Some(stream) = self.streams.get_mut(token) else { return Step::Over };
        if stream.state != State::Open {
            return Step::Over;
        }
        if stream.pending() > stream.max_pending {
            return Step::Held;
        }
        match stream.input.cut_message() {
            Message::At(start, stop) => {
                stream.messages += 1;
                self.counters.messages += 1;
                Step::Message(stream.input.bytes(start, stop))
            }
            Message::NeedMore => {
                // All that came was handled, whether or not the handler had something to say to it.
                stream.owing = stream.input.unread();
                Step::Dry
            }
            Message::Closed => Step::PeerClosed,
            Message::Bad => {
                self.counters.malformed += 1;
                Step::Bad
            }
        }
    }

    /// Send one message as a reply; `None` if that takes more than putting it behind the others.
    #[inline]
    pub fn reply(&mut self, token: Token, message: &[u8], now: f64) -> Option<Effects> {
        self.with(token, |stream, kit| stream.reply(kit, token, message, now))
    }

    /// Only gather replies from now on.
    pub fn cork(&mut self, token: Token) {
        if let Some(stream) = self.stream_mut(token) {
            stream.corked = true;
        }
    }

    /// Send what was gathered.
    pub fn uncork(&mut self, token: Token, now: f64) -> Effects {
        self.with(token, |stream, kit| {
            stream.corked = false;
            if stream.state == State::Open { stream.flush(kit, token, now) } else { Effects::default() }
        })
    }

    /// Queue bytes, and send what can be sent unless it may be coalesced with what follows; `None` if output has ended.
    pub fn write(&mut self, token: Token, data: &[u8], now: f64) -> Option<Effects> {
        self.with(token, |stream, kit| stream.write(kit, token, data, now))
    }

    /// As `write`; `None`, and nothing done, also where the peer leaves, or would leave, too much untaken.
    #[inline]
    pub fn offer(&mut self, token: Token, data: &[u8], now: f64) -> Option<Effects> {
        self.with(token, |stream, kit| {
            if stream.pending() + data.len() > stream.max_pending {
                return None;
            }
            stream.write(kit, token, data, now)
        })
    }

    /// Send what the kernel takes now.
    #[inline]
    pub fn flush(&mut self, token: Token, now: f64) -> Effects {
        self.with(token, |stream, kit| stream.flush(kit, token, now))
    }

    /// Send the end of our side after what is pending.
    pub fn shutdown_output(&mut self, token: Token, now: f64) -> Effects {
        self.with(token, |stream, kit| {
            if stream.write_ended || stream.state == State::Closed {
                return Effects::default();
            }
            stream.write_ended = true;
            stream.flush(kit, token, now)
        })
    }

    /// Flush, end our side, linger.
    pub fn close(&mut self, token: Token, linger: bool, now: f64) -> Effects {
        self.with(token, |stream, kit| stream.close(kit, token, linger, now))
    }

    /// End at once, with a reset if `reset`.
    pub fn fail(&mut self, token: Token, reset: bool) -> Effects {
        self.with(token, |stream, kit| {
            if stream.state == State::Closed {
                return Effects::default();
            }
            if reset {
                // Sockets without it (AF_UNIX on some systems) just close.
                let _ = sockopt::set_socket_linger(stream.borrowed(), Some(std::time::Duration::ZERO));
            }
            stream.finish(kit)
        })
    }

    /// Take out what was written and not sent.
    pub fn take_output(&mut self, token: Token) -> Vec<u8> {
        self.stream_mut(token).map_or_else(Vec::new, |stream| {
            let rest = stream.wire[stream.wire_start..].to_vec();
            stream.wire = Vec::new();
            stream.wire_start = 0;
            rest
        })
    }

    /// Let the socket go without ending it.
    pub fn release(&mut self, token: Token) {
        self.with(token, |stream, kit| stream.release(kit));
    }

    /// A stream's timer fired: what is due is the driver's to decide, unless the stream was ending.
    pub fn overdue(&mut self, token: Token, now: f64) -> (Due, Effects) {
        let mut found = (Due::Never, Effects::default());
        self.with(token, |stream, kit| {
            stream.timer = None;
            stream.armed = f64::INFINITY;
            if stream.state == State::Closed {
                return;
            }
            let (when, due) = stream.watch.deadline(&stream.timeouts);
            if when > now {
                stream.arm(kit, token);
            } else if due == Due::Linger || stream.state == State::Closing {
                found.1 = stream.finish(kit);
            } else {
                kit.counters.overdue += 1;
                found.0 = due;
            }
        });
        found
    }

    /// Arm the timer for the next deadline; false if that has passed.
    pub fn arm(&mut self, token: Token, now: f64) -> bool {
        self.with(token, |stream, kit| {
            stream.arm(kit, token);
            stream.watch.deadline(&stream.timeouts).0 > now
        })
    }

    /// Hold no more memory for a stream than it needs.
    #[inline]
    pub fn settle(&mut self, token: Token) {
        if let Some(stream) = self.streams.get_mut(token) {
            stream.input.settle(&mut self.pool);
        }
    }
}

impl Stream {
    /// Bytes written that the kernel has not taken.
    #[inline]
    pub fn pending(&self) -> usize {
        self.wire.len() - self.wire_start + self.lost
    }

    /// Whether more may be written.
    pub fn writable(&self) -> bool {
        self.state == State::Open && !self.write_ended
    }

    /// Whether more is read at all.
    pub fn reading(&self) -> bool {
        self.interest & READ != 0
    }

    fn borrowed(&self) -> BorrowedFd<'_> {
        // SAFETY: the driver keeps the descriptor open until it is told that the stream is finished; after that it is
        // not used.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    #[inline]
    fn want_input<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, hungry: bool, now: f64) {
        if hungry != self.hungry {
            self.hungry = hungry;
            if hungry {
                self.watch.wait(now);
                if !self.input.unread() {
                    self.watch.whole();
                }
            } else {
                self.watch.waiting = false;
            }
        }
        self.update(kit, token);
    }

    #[inline]
    fn read<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, now: f64) -> Read {
        // SAFETY: as in `borrowed`, which cannot be used here as the input is borrowed besides.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        let room = self.input.room(kit.pool);
        let before = room.len();
        let count = match recv(fd, spare_capacity(room), RecvFlags::DONTWAIT) {
            Ok((_, count)) => count,
            Err(Errno::AGAIN | Errno::INTR) => {
                self.input.settle(kit.pool);
                return Read::Nothing;
            }
            Err(error) => return Read::Gone(self.broken(kit, error)),
        };
        if self.state == State::Closing {
            room.truncate(before);
            self.input.settle(kit.pool);
            self.dropped += count;
            if count == 0 || self.dropped > LINGER_BYTES {
                return Read::Gone(self.finish(kit));
            }
            return Read::Nothing;
        }
        if count > 0 {
            self.received += count as u64;
            kit.counters.received += count as u64;
            self.watch.received(count, now);
            self.owing = true;
        } else {
            self.input.ended = true;
        }
        self.update(kit, token);
        Read::Arrived
    }

    #[inline]
    fn reply<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, message: &[u8], now: f64) -> Option<Effects> {
        if !self.writable() || self.pending() > self.max_pending {
            return None;
        }
        if self.wire.capacity() == 0 {
            self.wire = kit.pool.take();
        }
        if !self.input.framing().encode(message, &mut self.wire) {
            return None;
        }
        self.owing = false;
        if self.corked {
            return Some(Effects::default());
        }
        if self.coalescing && self.input.unread() && self.wire.len() - self.wire_start < COALESCE {
            self.put_off(kit, token);
            return Some(Effects::default());
        }
        Some(self.flush(kit, token, now))
    }

    fn write<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, data: &[u8], now: f64) -> Option<Effects> {
        if !self.writable() {
            return None;
        }
        if data.is_empty() {
            return Some(Effects::default());
        }
        self.owing = false;
        if self.wire.capacity() == 0 {
            self.wire = kit.pool.take();
        }
        self.wire.extend_from_slice(data);
        if self.coalescing && self.input.unread() && self.wire.len() - self.wire_start < COALESCE {
            self.put_off(kit, token);
            return Some(Effects::default());
        }
        Some(self.flush(kit, token, now))
    }

    #[inline]
    fn put_off<T>(&mut self, kit: &mut Kit<'_, T>, token: Token) {
        if !self.deferred {
            self.deferred = true;
            kit.dirty.push_back(token);
        }
    }

    #[inline]
    fn flush<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, now: f64) -> Effects {
        self.deferred = false;
        if self.state == State::Closed {
            return Effects::default();
        }
        let before = self.wire.len() - self.wire_start;
        let mut effects = Effects::default();
        if before > 0 {
            let sent = send(self.borrowed(), &self.wire[self.wire_start..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            let count = match sent {
                Ok(count) => count,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(error) => return self.broken(kit, error),
            };
            self.wire_start += count;
            let left = before - count;
            if count > 0 {
                self.sent += count as u64;
                kit.counters.sent += count as u64;
                self.watch.sent(now, left > 0);
            }
            let half = self.max_pending / 2;
            effects.drained = before > half && half >= left || left == 0 && (self.blocked || self.telling);
            self.blocked = left > 0;
            if left > 0 {
                self.watch.output(now);
                self.keep_what_is_left(kit);
                self.arm(kit, token);
            } else {
                self.wire_start = 0;
                kit.pool.give(std::mem::take(&mut self.wire));
            }
        }
        self.update(kit, token);
        effects.and(self.output_sent(kit))
    }

    fn keep_what_is_left<T>(&mut self, kit: &mut Kit<'_, T>) {
        let rest = self.wire.len() - self.wire_start;
        if self.wire_start > 0 && rest * 2 < self.wire.capacity() {
            let own = self.wire[self.wire_start..].to_vec();
            self.wire_start = 0;
            kit.pool.give(std::mem::replace(&mut self.wire, own));
        }
    }

    /// Go on with what waits for the last byte to leave: our end of the stream, then the linger.
    #[inline]
    fn output_sent<T>(&mut self, kit: &mut Kit<'_, T>) -> Effects {
        if !self.write_ended || self.state == State::Closed || self.wire.len() > self.wire_start {
            return Effects::default();
        }
        if !self.shut {
            self.shut = true;
            if shutdown(self.borrowed(), Shutdown::Write).is_err() && self.state == State::Closing {
                // The peer is gone already, and then there is nobody to tell.
                return self.finish(kit);
            }
        }
        if self.state == State::Closing && self.input.ended { self.finish(kit) } else { Effects::default() }
    }

    fn close<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, linger: bool, now: f64) -> Effects {
        match self.state {
            State::Closing | State::Closed => return Effects::default(),
            State::Opening => return self.finish(kit),
            State::Open => {}
        }
        self.state = State::Closing;
        self.watch.closing_since = now;
        self.write_ended = true;
        if !linger && self.pending() == 0 {
            return self.finish(kit);
        }
        self.arm(kit, token);
        let effects = self.flush(kit, token, now);
        self.update(kit, token);
        effects
    }

    /// The system ended it.
    fn broken<T>(&mut self, kit: &mut Kit<'_, T>, error: Errno) -> Effects {
        let known = self.state == State::Closing;
        if matches!(error, Errno::CONNRESET | Errno::PIPE) {
            kit.counters.resets += 1;
        } else {
            kit.counters.failures += 1;
        }
        let mut effects = self.finish(kit);
        if !known {
            effects.error = Some(error);
        }
        effects
    }

    fn finish<T>(&mut self, kit: &mut Kit<'_, T>) -> Effects {
        self.release(kit);
        self.input.ended = true;
        Effects { finished: true, ..Effects::default() }
    }

    fn release<T>(&mut self, kit: &mut Kit<'_, T>) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        kit.counters.closed += 1;
        if let (true, Some(poller)) = (self.interest != 0, kit.poller) {
            poller.forget(self.fd);
        }
        self.interest = 0;
        if let Some(timer) = self.timer.take() {
            kit.wheel.cancel(timer);
        }
        self.lost = self.wire.len() - self.wire_start;
        self.wire_start = 0;
        kit.pool.give(std::mem::take(&mut self.wire));
        self.input.settle(kit.pool);
    }

    /// Watch the socket for just what can be done now.
    #[inline]
    fn update<T>(&mut self, kit: &mut Kit<'_, T>, token: Token) {
        let mut events = 0;
        let pending = self.wire.len() > self.wire_start;
        let reads = match self.state {
            State::Closed => return,
            State::Opening => true,
            State::Closing => !self.input.ended,
            State::Open => {
                !self.input.ended
                    && (self.hungry || self.input.size() < CHUNK.min(self.max_pending))
                    && self.wire.len() - self.wire_start <= self.max_pending
            }
        };
        if reads {
            events = READ;
        }
        if pending && !self.deferred {
            events |= WRITE;
        }
        if events != self.interest
            && let Some(poller) = kit.poller
        {
            if events == 0 {
                // Not just watched for nothing: a hang-up would be reported all the same, again and again.
                poller.forget(self.fd);
            } else if poller.watch(self.fd, token, events, self.interest != 0).is_err() {
                // Out of memory, or of watches: the stream's deadlines will end it.
                return;
            }
            self.interest = events;
        }
        if self.hungry || pending || self.state != State::Open {
            self.arm(kit, token);
        }
    }

    #[inline]
    fn arm<T>(&mut self, kit: &mut Kit<'_, T>, token: Token) {
        let (when, _) = self.watch.deadline(&self.timeouts);
        if when >= self.armed {
            return;
        }
        if let Some(timer) = self.timer.take() {
            kit.wheel.cancel(timer);
        }
        self.armed = when;
        self.timer = Some(kit.wheel.add(when, Ok(token)));
    }
}
