//! Many pipes over one epoll.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::address::Address;
use crate::load::channel::{Channel, Trust};
use crate::load::measurement::Measurement;
use crate::load::pipe::Pipe;
use crate::load::tape::Tape;

/// A server that has answered nothing for so long is said to hang.
const PATIENCE: u64 = 10_000_000_000;
const BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;

/// Whom to load, and with what.
pub struct Target {
    /// Where the server listens.
    pub address: Address,
    /// What a TLS client trusts; none for plain streams.
    pub trust: Option<Trust>,
    /// What is sent.
    pub tape: Tape,
}

/// Open pipes, and what turns them.
pub struct Exchange<'a> {
    target: &'a Target,
    epoll: OwnedFd,
    pipes: Vec<Pipe>,
    is_watched_for_room: Vec<bool>,
    buffer: Box<[u8]>,
    events: Box<[Event]>,
    last_answer: u64,
}

impl<'a> Exchange<'a> {
    /// Open so many connections, one after the other.
    pub fn open(target: &'a Target, connections: usize) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut pipes = Vec::with_capacity(connections);
        for number in 0..connections {
            let socket = connect(&target.address)
                .map_err(|error| io::Error::new(error.kind(), format!("connection {}: {error}", number + 1)))?;
            let pipe = Pipe::new(Channel::new(socket, target.trust.as_ref())?, target.tape.start(number));
            epoll::add(&epoll, &pipe, EventData::new_u64(number as u64), EventFlags::IN)?;
            pipes.push(pipe);
        }
        let nothing = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        Ok(Self {
            target,
            epoll,
            is_watched_for_room: vec![false; connections],
            pipes,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            events: vec![nothing; EVENTS].into_boxed_slice(),
            last_answer: 0,
        })
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.pipes.len()
    }

    /// How many messages have no answer yet.
    pub fn unanswered(&self) -> usize {
        self.pipes.iter().map(Pipe::unanswered).sum()
    }

    /// Send `count` messages on one connection; their latency counts from `moment`.
    pub fn send(&mut self, number: usize, count: usize, moment: u64) -> io::Result<()> {
        for _ in 0..count {
            self.pipes[number].owe(&self.target.tape, moment);
        }
        self.flush(number)
    }

    fn flush(&mut self, number: usize) -> io::Result<()> {
        let is_left = self.pipes[number].send(&self.target.tape)?;
        if is_left != self.is_watched_for_room[number] {
            self.is_watched_for_room[number] = is_left;
            let flags = if is_left { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &self.pipes[number], EventData::new_u64(number as u64), flags)?;
        }
        Ok(())
    }

    /// Wait at most `timeout` and take what has come; with `refill`, every answer is followed by another message.
    pub fn turn(&mut self, timeout: Duration, measurement: &mut Measurement, refill: bool) -> io::Result<()> {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let count = match epoll::wait(&self.epoll, &mut self.events[..], Some(&timeout)) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for index in 0..count {
            let (flags, number) = (self.events[index].flags, self.events[index].data.u64() as usize);
            if flags.contains(EventFlags::OUT) {
                self.flush(number)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                let answers = self.pipes[number].receive(&self.target.tape, &mut self.buffer)?;
                let now = measurement.now();
                for _ in 0..answers {
                    if let Some(begun) = self.pipes[number].next_begun() {
                        measurement.count(now - begun);
                    }
                }
                if answers > 0 {
                    self.last_answer = now;
                }
                self.send(number, if refill { answers } else { 0 }, now)?;
            }
        }
        let now = measurement.now();
        if count == 0 && now > self.last_answer + PATIENCE && self.unanswered() > 0 {
            let (unanswered, seconds) = (self.unanswered(), PATIENCE / 1_000_000_000);
            let text = format!("no answer for {seconds} seconds; {unanswered} messages are unanswered");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }
}

/// Connect, waiting as long as it takes.
fn connect(address: &Address) -> io::Result<OwnedFd> {
    for _ in 0..10_000 {
        let socket = match address.connect(None) {
            Ok(socket) => socket,
            // A Unix socket whose queue is full says so at once; it has to be asked again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error),
        };
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        if rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&patience))? == 0 {
            break;
        }
        sockopt::socket_error(&socket)??;
        return Ok(socket);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the server accepts no connection"))
}
