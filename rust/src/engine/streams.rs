//! All streams of a reactor: found by their token, and lent what they share.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::net::sockopt;

use super::answers::{Effects, Exchange, Read, Step};
use super::buffer::Pool;
use super::counters::Counters;
use super::deadlines::Due;
use super::poller::Poller;
use super::slab::{Slab, Token};
use super::stream::{Kit, Options, State, Stream};
use super::wheel::Wheel;

/// All streams of one reactor, and what they share.
#[derive(Debug)]
pub struct Engine<T> {
    pub(super) streams: Slab<Box<Stream>>,
    /// What waits for the kernel; none once the reactor is closed.
    pub poller: Option<Arc<Poller>>,
    /// What falls due: a stream's deadline, or something of the driver's.
    pub wheel: Wheel<Result<Token, T>>,
    /// What was counted.
    pub counters: Counters,
    /// Streams whose output was put off.
    pub dirty: VecDeque<Token>,
    pub(super) pool: Pool,
}

impl<T> Engine<T> {
    /// What the poller and the streams have open.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let own = self.poller.iter().flat_map(|poller| poller.descriptors());
        // The number of a stream that is closed may be somebody else's by now.
        let live = self.streams.values().filter(|stream| stream.state != State::Closed);
        own.chain(live.map(|stream| stream.fd)).collect()
    }

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
        self.streams.insert(Box::new(Stream::new(options, now)))
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

    /// The stream of a token, and what it uses of the rest.
    #[inline]
    fn stream_and_kit(&mut self, token: Token) -> Option<(&mut Stream, Kit<'_, T>)> {
        let stream = self.streams.get_mut(token)?;
        let kit = Kit {
            poller: self.poller.as_deref(),
            wheel: &mut self.wheel,
            counters: &mut self.counters,
            dirty: &mut self.dirty,
            pool: &mut self.pool,
        };
        Some((stream, kit))
    }

    #[inline]
    pub(super) fn with<R: Default>(&mut self, token: Token, call: impl FnOnce(&mut Stream, &mut Kit<'_, T>) -> R) -> R {
        self.stream_and_kit(token).map_or_else(R::default, |(stream, mut kit)| call(stream, &mut kit))
    }

    /// Begin to be open.
    pub fn start(&mut self, token: Token) {
        self.with(token, |stream, kit| {
            stream.state = State::Open;
            // Its lifetime runs from here, whether or not a handler ever waits.
            stream.arm(kit, token);
        });
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

    /// Read nothing for now, or read again as before.
    pub fn hold(&mut self, token: Token, held: bool) {
        self.with(token, |stream, kit| {
            stream.held = held;
            stream.update(kit, token);
        });
    }

    /// Read once.
    #[inline]
    pub fn read(&mut self, token: Token, now: f64) -> Read {
        self.stream_and_kit(token).map_or(Read::Nothing, |(stream, mut kit)| stream.read(&mut kit, token, now))
    }

    /// Hand out the next message; the answer stands until something else is asked.
    #[inline]
    pub fn step(&mut self, token: Token) -> Step<'_> {
        self.streams.get_mut(token).map_or(Step::Over, |stream| stream.step(&mut self.counters))
    }

    /// `reply`, and `step` unless the reply has brought something about, or there is to be no more.
    ///
    /// It is what happens between two calls of a handler, so the stream is sought once for both.
    #[inline]
    pub fn exchange(&mut self, token: Token, message: &[u8], now: f64, more: bool) -> Exchange<'_> {
        let Some((stream, mut kit)) = self.stream_and_kit(token) else { return Exchange::Refused };
        match stream.reply(&mut kit, token, message, now) {
            None => Exchange::Refused,
            Some(effects) if more && effects.is_empty() => Exchange::Next(stream.step(kit.counters)),
            Some(effects) => Exchange::Sent(effects),
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
    pub fn write(&mut self, token: Token, data: &[u8], now: impl FnOnce() -> f64) -> Option<Effects> {
        self.with(token, |stream, kit| stream.write(kit, token, data, now))
    }

    /// As `write`; `None`, and nothing done, also where the peer leaves, or would leave, too much untaken.
    #[inline]
    pub fn offer(&mut self, token: Token, data: &[u8], now: impl FnOnce() -> f64) -> Option<Effects> {
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
