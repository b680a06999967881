//! Short connections: connect, one message, its answer, close.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::load::channel::Channel;
use crate::load::exchange::Target;
use crate::load::measurement::{Measurement, Plan};
use crate::load::pipe::Pipe;

const BUFFER: usize = 64 * 1024;
const PATIENCE: u64 = 10_000_000_000;
/// Each has some 28,000 ports.
const SOURCES: u64 = 64;

/// Keep so many short connections going at the same time; the latency is from connecting to the whole answer.
pub fn churn(target: &Target, connections: usize, plan: Plan) -> io::Result<Measurement> {
    let mut measurement = Measurement::new(plan)?;
    let mut churn = Churn::new(target, connections)?;
    for slot in 0..connections {
        churn.connect(slot, &measurement)?;
    }
    while !measurement.is_over(measurement.now())? {
        churn.turn(&mut measurement)?;
    }
    Ok(measurement)
}

struct Churn<'a> {
    target: &'a Target,
    epoll: OwnedFd,
    slots: Vec<Option<Pipe>>,
    opened: u64,
    last_answer: u64,
    buffer: Box<[u8]>,
    events: Box<[Event]>,
}

impl<'a> Churn<'a> {
    fn new(target: &'a Target, connections: usize) -> io::Result<Self> {
        let nothing = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        Ok(Self {
            target,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            slots: (0..connections).map(|_| None).collect(),
            opened: 0,
            last_answer: 0,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            events: vec![nothing; connections].into_boxed_slice(),
        })
    }

    fn connect(&mut self, slot: usize, measurement: &Measurement) -> io::Result<()> {
        let source = self.target.address.is_loopback_v4().then(|| {
            let host = self.opened % SOURCES;
            Ipv4Addr::new(127, 0, 0, 1 + host as u8)
        });
        let begun = measurement.now();
        let socket = self.target.address.connect(source)?;
        let mut pipe = Pipe::new(
            Channel::new(socket, self.target.trust.as_ref())?,
            self.target.tape.start((self.opened % (1 << 32)) as usize),
        );
        pipe.owe(&self.target.tape, begun);
        self.opened += 1;
        epoll::add(&self.epoll, &pipe, EventData::new_u64(slot as u64), EventFlags::OUT)?;
        self.slots[slot] = Some(pipe);
        Ok(())
    }

    fn turn(&mut self, measurement: &mut Measurement) -> io::Result<()> {
        let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let count = match epoll::wait(&self.epoll, &mut self.events[..], Some(&timeout)) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for index in 0..count {
            let (flags, slot) = (self.events[index].flags, self.events[index].data.u64() as usize);
            if let Some(latency) = self.advance(slot, flags, measurement)? {
                self.last_answer = measurement.now();
                measurement.count(latency);
                self.slots[slot] = None;
                self.connect(slot, measurement)?;
            }
        }
        if count == 0 && measurement.now() > self.last_answer + PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer for 10 seconds"));
        }
        Ok(())
    }

    /// Do what this connection is ready for; returns the latency when its answer is complete.
    fn advance(&mut self, slot: usize, flags: EventFlags, measurement: &Measurement) -> io::Result<Option<u64>> {
        let Some(pipe) = self.slots[slot].as_mut() else { return Ok(None) };
        if flags.contains(EventFlags::ERR) {
            sockopt::socket_error(&*pipe)??;
        }
        if flags.contains(EventFlags::OUT) {
            let is_left = pipe.send(&self.target.tape)?;
            let next = if is_left { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &*pipe, EventData::new_u64(slot as u64), next)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP) && pipe.receive(&self.target.tape, &mut self.buffer)? > 0
        {
            return Ok(pipe.next_begun().map(|begun| measurement.now() - begun));
        }
        Ok(None)
    }
}
