//! One connection, and its place on the tape.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::load::channel::Channel;
use crate::load::tape::Tape;

/// A channel, with what is to be sent and what has come back.
pub struct Pipe {
    channel: Channel,
    start: u64,
    due: u64,
    sent: u64,
    received: u64,
    begun: VecDeque<u64>,
}

impl Pipe {
    /// A pipe that begins at `start` on the tape.
    pub fn new(channel: Channel, start: u64) -> Self {
        Self { channel, start, due: 0, sent: 0, received: 0, begun: VecDeque::new() }
    }

    /// One more message is to be sent, and its latency counts from `moment`.
    pub fn owe(&mut self, tape: &Tape, moment: u64) {
        self.due += tape.size() as u64;
        self.begun.push_back(moment);
    }

    /// When the oldest unanswered message began.
    pub fn next_begun(&mut self) -> Option<u64> {
        self.begun.pop_front()
    }

    /// How many messages have no answer yet.
    pub fn unanswered(&self) -> usize {
        self.begun.len()
    }

    /// Send what is owed as far as there is room; returns whether something is left.
    pub fn send(&mut self, tape: &Tape) -> io::Result<bool> {
        while self.sent < self.due {
            let part = tape.part(self.start + self.sent, (self.due - self.sent) as usize);
            match self.channel.write(part) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        self.channel.flush()
    }

    /// Read and check what has come; returns how many answers are complete now.
    pub fn receive(&mut self, tape: &Tape, buffer: &mut [u8]) -> io::Result<usize> {
        let size = tape.size() as u64;
        let before = self.received / size;
        loop {
            match self.channel.read(buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the connection")),
                Ok(count) => {
                    self.check(tape, &buffer[..count])?;
                    if self.channel.is_plain() && count < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok((self.received / size - before) as usize)
    }

    fn check(&mut self, tape: &Tape, answer: &[u8]) -> io::Result<()> {
        let end = self.received + answer.len() as u64;
        if end > self.sent {
            let surplus = end - self.sent;
            return Err(io::Error::other(format!("a wrong answer: {surplus} bytes more than were sent")));
        }
        if !tape.matches(self.start + self.received, answer) {
            let (from, shown) = (self.received, answer[..answer.len().min(80)].escape_ascii());
            return Err(io::Error::other(format!("a wrong answer, from byte {from} of the stream on: {shown}")));
        }
        self.received = end;
        Ok(())
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
