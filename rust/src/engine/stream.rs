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
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::answers::{Effects, Read, Step};
use super::buffer::{Input, Message, Pool};
use super::counters::Counters;
use super::deadlines::{Timeouts, Watch};
use super::framing::Framing;
use super::poller::{Poller, READ, WRITE};
use super::sealing::Seal;
use super::slab::Token;
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

/// One stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) fd: RawFd,
    /// Where it is in its life.
    pub state: State,
    /// What the poller watches it for.
    pub(super) interest: u8,
    /// What came.
    pub input: Input,
    /// What is to be sent, from `wire_start` on.
    pub(super) wire: Vec<u8>,
    pub(super) wire_start: usize,
    /// What is between the wire and its user, if it speaks TLS.
    pub(super) seal: Option<Box<Seal>>,
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
    pub(super) corked: bool,
    /// Whether nothing is read for now, whoever wants it.
    pub(super) held: bool,
    /// Whether it was said that pending output is near its limit.
    near: bool,
    pub(super) write_ended: bool,
    /// Whether the end of our side was sent.
    shut: bool,
    /// Bytes that came after our last one had left; all there can be once the peer has ended its side, too.
    dropped: usize,
    /// Bytes that came.
    pub received: u64,
    /// Bytes that the kernel took.
    pub sent: u64,
    /// Messages handed out by `step`.
    pub messages: u64,
    /// Pieces of the input that one may take before it is the turn of others; 0: all of it.
    pub share: u32,
    /// Those that were taken since somebody last waited.
    pub taken: u32,
    /// Its deadlines.
    pub watch: Watch,
    pub(super) timeouts: Arc<Timeouts>,
    pub(super) max_pending: usize,
    pub(super) timer: Option<Token>,
    pub(super) armed: f64,
}

/// What streams use of their engine.
pub(super) struct Kit<'a, T> {
    pub poller: Option<&'a Poller>,
    pub wheel: &'a mut Wheel<Result<Token, T>>,
    pub counters: &'a mut Counters,
    pub dirty: &'a mut VecDeque<Token>,
    pub pool: &'a mut Pool,
}

impl Stream {
    /// A stream that was not started.
    pub(super) fn new(options: Options, now: f64) -> Self {
        Stream {
            fd: options.fd,
            state: State::Opening,
            interest: 0,
            input: Input::new(options.framing),
            wire: Vec::new(),
            wire_start: 0,
            seal: None,
            lost: 0,
            deferred: false,
            blocked: false,
            hungry: false,
            owing: false,
            coalescing: false,
            telling: false,
            corked: false,
            held: false,
            near: false,
            write_ended: false,
            shut: false,
            dropped: 0,
            received: 0,
            sent: 0,
            messages: 0,
            share: 0,
            taken: 0,
            watch: Watch::new(now),
            timeouts: options.timeouts,
            max_pending: options.max_pending,
            timer: None,
            armed: f64::INFINITY,
        }
    }

    /// Bytes written that the kernel has not taken.
    #[inline]
    pub fn pending(&self) -> usize {
        let plain = self.seal.as_ref().map_or(0, |seal| seal.plain.len());
        self.wire.len() - self.wire_start + plain + self.lost
    }

    /// Whether more may be written.
    pub fn writable(&self) -> bool {
        self.state == State::Open && !self.write_ended
    }

    /// Whether nothing more is handed out before others had their turn, though there is something.
    #[inline]
    pub fn sated(&self) -> bool {
        self.taken >= self.share && self.share != 0 && self.state == State::Open && self.input.unread()
    }

    /// Whether more is read at all.
    pub fn reading(&self) -> bool {
        self.interest & READ != 0
    }

    pub(super) fn borrowed(&self) -> BorrowedFd<'_> {
        // SAFETY: the driver keeps the descriptor open until it is told that the stream is finished; after that it is
        // not used.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    #[inline]
    pub(super) fn want_input<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, hungry: bool, now: f64) {
        if hungry != self.hungry {
            self.hungry = hungry;
            if hungry {
                self.watch.wait(now);
                if !self.input.unread() {
                    self.watch.whole();
                }
                self.arm(kit, token);
            } else {
                self.watch.waiting = false;
            }
        }
        self.update(kit, token);
    }

    #[inline]
    pub(super) fn read<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, now: f64) -> Read {
        if self.seal.is_some() && self.state != State::Closing {
            return self.read_sealed(kit, token, now);
        }
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
            if count == 0 {
                self.dropped = usize::MAX;
            } else if self.pending() == 0 {
                self.dropped += count;
            }
            if self.lingers() {
                return Read::Nothing;
            }
            if self.pending() > 0 {
                // The end of their side, or of our patience with it, says nothing about what they still read.
                self.update(kit, token);
                return Read::Nothing;
            }
            return Read::Gone(self.finish(kit));
        }
        if count > 0 {
            self.came(kit, token, count, now);
            self.owing = true;
        } else {
            self.input.ended = true;
        }
        self.update(kit, token);
        Read::Arrived
    }

    /// Bytes came.
    #[inline]
    pub(super) fn came<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, count: usize, now: f64) {
        self.received += count as u64;
        kit.counters.received += count as u64;
        self.watch.received(count, now);
        if self.timeouts.min_rate > 0.0 {
            // A message has begun, and with it a time in which it has to come.
            self.arm(kit, token);
        }
    }

    #[inline]
    pub(super) fn step(&mut self, counters: &mut Counters) -> Step<'_> {
        if self.state != State::Open {
            return Step::Over;
        }
        if self.pending() > self.max_pending {
            return Step::Held;
        }
        match self.input.cut_message() {
            Message::At(start, stop) => {
                self.messages += 1;
                counters.messages += 1;
                Step::Message(self.input.bytes(start, stop))
            }
            Message::NeedMore => {
                // All that came was handled, whether or not the handler had something to say to it.
                self.owing = self.input.unread();
                Step::Dry
            }
            Message::Closed => Step::PeerClosed,
            Message::Bad => {
                counters.malformed += 1;
                Step::Bad
            }
        }
    }

    #[inline]
    pub(super) fn reply<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, message: &[u8], now: f64) -> Option<Effects> {
        if !self.writable() || self.pending() > self.max_pending {
            return None;
        }
        if !self.input.framing().encode(message, output(&mut self.wire, &mut self.seal, kit.pool)) {
            return None;
        }
        self.owing = false;
        if self.corked {
            return Some(Effects::default());
        }
        if self.coalescing && self.input.unread() && self.pending() < COALESCE {
            self.put_off(kit, token);
            return Some(Effects::default());
        }
        Some(self.flush(kit, token, now))
    }

    /// Queue bytes; `now` is asked for the time only where some are sent at once.
    #[inline]
    pub(super) fn write<T>(
        &mut self,
        kit: &mut Kit<'_, T>,
        token: Token,
        data: &[u8],
        now: impl FnOnce() -> f64,
    ) -> Option<Effects> {
        if !self.writable() {
            return None;
        }
        if data.is_empty() {
            return Some(Effects::default());
        }
        self.owing = false;
        output(&mut self.wire, &mut self.seal, kit.pool).extend_from_slice(data);
        if self.coalescing && self.input.unread() && self.pending() < COALESCE {
            self.put_off(kit, token);
            return Some(Effects::default());
        }
        Some(self.flush(kit, token, now()))
    }

    #[inline]
    fn put_off<T>(&mut self, kit: &mut Kit<'_, T>, token: Token) {
        if !self.deferred {
            self.deferred = true;
            kit.dirty.push_back(token);
        }
    }

    #[inline]
    pub(super) fn flush<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, now: f64) -> Effects {
        self.deferred = false;
        if self.state == State::Closed {
            return Effects::default();
        }
        if self.seal.as_ref().is_some_and(|seal| seal.is_due()) {
            return Effects { sealing: true, ..Effects::default() };
        }
        self.transmit(kit, token, self.pending(), now)
    }

    /// Send what is on the wire; `before` are the bytes that were pending before.
    #[inline]
    pub(super) fn transmit<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, before: usize, now: f64) -> Effects {
        let mut effects = Effects::default();
        if self.wire.len() > self.wire_start {
            let sent = send(self.borrowed(), &self.wire[self.wire_start..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            let count = match sent {
                Ok(count) => count,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(error) => return self.broken(kit, error),
            };
            self.wire_start += count;
            if self.wire_start == self.wire.len() {
                self.wire_start = 0;
                kit.pool.give(std::mem::take(&mut self.wire));
            }
            let left = self.pending();
            if count > 0 {
                self.sent += count as u64;
                kit.counters.sent += count as u64;
                self.watch.sent(now, left > 0);
            }
            let half = self.max_pending / 2;
            effects.drained = before > half && half >= left || left == 0 && (self.blocked || self.telling);
            let was_blocked = std::mem::replace(&mut self.blocked, left > 0);
            if left > 0 {
                effects.near = self.comes_near(left);
                self.watch.output(now);
                self.keep_what_is_left(kit);
                self.arm(kit, token);
            } else {
                self.near = false;
                if was_blocked {
                    // Silence counts again, and may be due before the timer that was for the peer's progress.
                    self.arm(kit, token);
                }
            }
        }
        self.update(kit, token);
        effects.and(self.output_sent(kit))
    }

    /// Whether so much pending is to be told of: at 80 % of the limit, and again once it was below 60 %.
    fn comes_near(&mut self, left: usize) -> bool {
        let share = |percent: usize| self.max_pending / 100 * percent + self.max_pending % 100 * percent / 100;
        let (near, calm) = (share(80), share(60));
        let told = self.near;
        self.near = left >= near || told && left >= calm;
        self.near && !told
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
        if !self.write_ended || self.state == State::Closed || self.pending() > 0 {
            return Effects::default();
        }
        if self.seal.as_mut().is_some_and(|seal| seal.takes_leave()) {
            return Effects { farewell: true, ..Effects::default() };
        }
        if !self.shut {
            self.shut = true;
            if shutdown(self.borrowed(), Shutdown::Write).is_err() && self.state == State::Closing {
                // The peer is gone already, and then there is nobody to tell.
                return self.finish(kit);
            }
        }
        if self.state == State::Closing && !self.lingers() { self.finish(kit) } else { Effects::default() }
    }

    pub(super) fn close<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, linger: bool, now: f64) -> Effects {
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

    /// Whether the peer may go on sending, once we have closed.
    fn lingers(&self) -> bool {
        !self.input.ended && self.dropped <= LINGER_BYTES
    }

    /// The system ended it.
    pub(super) fn broken<T>(&mut self, kit: &mut Kit<'_, T>, error: Errno) -> Effects {
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

    pub(super) fn finish<T>(&mut self, kit: &mut Kit<'_, T>) -> Effects {
        self.release(kit);
        Effects { finished: true, ..Effects::default() }
    }

    pub(super) fn release<T>(&mut self, kit: &mut Kit<'_, T>) {
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
        self.lost = self.pending();
        self.wire_start = 0;
        kit.pool.give(std::mem::take(&mut self.wire));
        self.seal = None;
        self.input.settle(kit.pool);
    }

    /// Watch the socket for just what can be done now.
    #[inline]
    pub(super) fn update<T>(&mut self, kit: &mut Kit<'_, T>, token: Token) {
        // The usual: it waits for input, and goes on to.
        let is_usual = self.interest == READ && self.hungry && self.wire.is_empty() && self.state == State::Open;
        if !is_usual || self.held || self.input.ended {
            self.update_watch(kit, token);
        }
    }

    #[inline(never)]
    fn update_watch<T>(&mut self, kit: &mut Kit<'_, T>, token: Token) {
        let mut events = 0;
        let pending = self.wire.len() > self.wire_start;
        let reads = match self.state {
            State::Closed => return,
            State::Opening => true,
            State::Closing => self.lingers(),
            State::Open => {
                !self.input.ended
                    && !self.held
                    && (self.hungry || self.input.size() < CHUNK.min(self.max_pending))
                    && self.pending() <= self.max_pending
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
        // While it is open, bytes move deadlines later only; what brings one nearer arms the timer itself.
        if self.state != State::Open {
            self.arm(kit, token);
        }
    }

    #[inline]
    pub(super) fn arm<T>(&mut self, kit: &mut Kit<'_, T>, token: Token) {
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

/// Where what is written goes: to the wire, or to what is sealed first.
#[inline]
fn output<'a>(wire: &'a mut Vec<u8>, seal: &'a mut Option<Box<Seal>>, pool: &mut Pool) -> &'a mut Vec<u8> {
    let output = match seal {
        None => wire,
        Some(seal) => &mut seal.plain,
    };
    if output.capacity() == 0 {
        *output = pool.take();
    }
    output
}
