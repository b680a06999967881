//! Streams that speak TLS: what is on the wire is not what their users read and write.
//!
//! The engine has no keys.  What came goes to the driver as it is ([`Read::Sealed`]), and what that says comes back as
//! input ([`Engine::deliver`]); what is written waits until the driver was told of it (`Effects::sealing`) and has given
//! the ciphertext ([`Engine::sealed`]).

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::answers::{Effects, Read};
use super::slab::Token;
use super::stream::{Kit, State, Stream};
use super::streams::Engine;

/// What a stream keeps besides, if it speaks TLS.
#[derive(Debug, Default)]
pub(super) struct Seal {
    /// Ciphertext that came, and that the driver has not taken.
    arrived: Vec<u8>,
    /// What was written and is not sealed.
    pub(super) plain: Vec<u8>,
    /// Whether the handshake is done.
    ready: bool,
    /// Whether the peer was told that no more comes (close_notify).
    farewell: bool,
}

impl Seal {
    /// Whether there is something to seal, and that can be done.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        self.ready && !self.plain.is_empty()
    }

    /// Whether the peer has to be told that no more comes; once.
    pub(super) fn takes_leave(&mut self) -> bool {
        self.ready && !std::mem::replace(&mut self.farewell, true)
    }
}

impl Stream {
    /// Read ciphertext.
    pub(super) fn read_sealed<T>(&mut self, kit: &mut Kit<'_, T>, token: Token, now: f64) -> Read {
        let mut buffer = kit.pool.take();
        let count = match recv(self.borrowed(), spare_capacity(&mut buffer), RecvFlags::DONTWAIT) {
            Ok((_, count)) => count,
            Err(error) => {
                kit.pool.give(buffer);
                return match error {
                    Errno::AGAIN | Errno::INTR => Read::Nothing,
                    _ => Read::Gone(self.broken(kit, error)),
                };
            }
        };
        if count > 0 {
            self.came(kit, token, count, now);
        }
        if let Some(seal) = &mut self.seal {
            seal.arrived = buffer;
        }
        Read::Sealed
    }
}

impl<T> Engine<T> {
    /// Have the stream speak TLS from the next byte on; it is open when the handshake is done.
    pub fn begin_sealing(&mut self, token: Token, now: f64) {
        self.with(token, |stream, kit| {
            stream.state = State::Opening;
            stream.seal = Some(Box::default());
            stream.watch.begin_handshake(now);
            stream.arm(kit, token);
            stream.update(kit, token);
        });
    }

    /// The handshake is done.
    pub fn end_handshake(&mut self, token: Token, now: f64) {
        self.with(token, |stream, kit| {
            stream.state = State::Open;
            if let Some(seal) = &mut stream.seal {
                seal.ready = true;
            }
            stream.watch.end_handshake(now);
            stream.arm(kit, token);
            stream.update(kit, token);
        });
    }

    /// Let `take` have the ciphertext that came; nothing of it is the end of the stream.
    pub fn take_arrived<R>(&mut self, token: Token, take: impl FnOnce(&[u8]) -> R) -> R {
        let arrived = self
            .stream_mut(token)
            .and_then(|stream| stream.seal.as_mut())
            .map_or_else(Vec::new, |seal| std::mem::take(&mut seal.arrived));
        let taken = take(&arrived);
        self.pool.give(arrived);
        taken
    }

    /// What ciphertext has said is input, and so is its end; false if the input has ended before.
    pub fn deliver(&mut self, token: Token, plain: &[u8], ended: bool) -> bool {
        self.with(token, |stream, kit| {
            if stream.input.ended {
                return false;
            }
            if !plain.is_empty() {
                stream.owing = true;
                stream.input.room(kit.pool).extend_from_slice(plain);
            }
            stream.input.ended = ended;
            stream.update(kit, token);
            true
        })
    }

    /// Let `take` have what is to be sealed, if there is something: with the bytes that are pending in all.
    pub fn take_plain<R>(&mut self, token: Token, take: impl FnOnce(&[u8]) -> R) -> Option<(R, usize)> {
        let stream = self.streams.get_mut(token)?;
        let pending = stream.pending();
        let seal = stream.seal.as_mut().filter(|seal| !seal.plain.is_empty())?;
        let plain = std::mem::take(&mut seal.plain);
        let taken = take(&plain);
        self.pool.give(plain);
        Some((taken, pending))
    }

    /// Send ciphertext; `before` are the bytes that were pending before it was made.
    pub fn sealed(&mut self, token: Token, ciphertext: &[u8], before: usize, now: f64) -> Effects {
        self.with(token, |stream, kit| {
            if stream.state == State::Closed {
                return Effects::default();
            }
            if stream.wire.capacity() == 0 && !ciphertext.is_empty() {
                stream.wire = kit.pool.take();
            }
            stream.wire.extend_from_slice(ciphertext);
            stream.transmit(kit, token, before, now)
        })
    }
}
