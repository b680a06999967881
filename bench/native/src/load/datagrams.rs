//! Datagrams: a closed loop of questions and answers, and a one-way stream.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::address::Address;
use crate::batch::Batch;
use crate::load::measurement::{Measurement, Plan};

const DATAGRAMS: usize = 64;
/// An answer that has not come for so long is lost.
const PATIENCE: u64 = 500_000_000;
/// A number at the front tells datagrams apart.
const NUMBER: usize = 8;

/// Keep `depth` datagrams in flight from each of so many sockets.
pub fn closed(address: &Address, connections: usize, depth: usize, size: usize, plan: Plan) -> io::Result<Measurement> {
    require_room(size)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut askers = Vec::new();
    for number in 0..connections {
        let socket = address.connect(None)?;
        epoll::add(&epoll, &socket, EventData::new_u64(number as u64), EventFlags::IN)?;
        askers.push(Asker { socket, next: 0, flights: VecDeque::new() });
    }
    let mut batch = Batch::new(DATAGRAMS, size, false);
    let mut measurement = Measurement::new(plan)?;
    for asker in &mut askers {
        asker.ask(depth, &mut batch, measurement.now())?;
    }
    let mut events = vec![Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; connections.min(1024)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let mut last_look = 0;
    while !measurement.is_over(measurement.now())? {
        let count = match epoll::wait(&epoll, &mut events[..], Some(&timeout)) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            askers[event.data.u64() as usize].take(&mut batch, &mut measurement)?;
        }
        let now = measurement.now();
        if now > last_look + PATIENCE / 10 {
            last_look = now;
            for asker in &mut askers {
                asker.give_up(&mut batch, now, &mut measurement)?;
            }
        }
    }
    Ok(measurement)
}

/// A datagram that was sent, and whether its answer has come.
struct Flight {
    begun: u64,
    is_answered: bool,
}

/// A socket, and its questions since the oldest unanswered one.
struct Asker {
    socket: OwnedFd,
    next: u64,
    flights: VecDeque<Flight>,
}

impl Asker {
    fn ask(&mut self, count: usize, batch: &mut Batch, now: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let some = left.min(batch.capacity());
            for index in 0..some {
                batch.put(index, |buffer| fill(buffer, self.next + index as u64));
            }
            let sent = match batch.transmit(&self.socket, some) {
                Ok(sent) => sent,
                // No room in the send buffer is a matter of microseconds on loopback.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            self.flights.extend((0..sent).map(|_| Flight { begun: now, is_answered: false }));
            self.next += sent as u64;
            left -= sent;
        }
        Ok(())
    }

    fn take(&mut self, batch: &mut Batch, measurement: &mut Measurement) -> io::Result<()> {
        let count = match batch.receive(&self.socket) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = measurement.now();
        let mut answered = 0;
        for index in 0..count {
            if let Some(begun) = self.settle(batch.datagram(index))? {
                measurement.count(now - begun);
                answered += 1;
            }
        }
        while self.flights.front().is_some_and(|flight| flight.is_answered) {
            self.flights.pop_front();
        }
        self.ask(answered, batch, now)
    }

    /// Check an answer; returns when its question was asked, or `None` if it was given up before.
    fn settle(&mut self, answer: &[u8]) -> io::Result<Option<u64>> {
        let number = read_number(answer).filter(|number| *number < self.next && is_whole(answer, *number));
        let Some(number) = number else {
            let shown = answer[..answer.len().min(80)].escape_ascii();
            return Err(io::Error::other(format!("a wrong answer: {shown}")));
        };
        let oldest = self.next - self.flights.len() as u64;
        let Some(flight) = number.checked_sub(oldest).and_then(|index| self.flights.get_mut(index as usize)) else {
            return Ok(None);
        };
        if flight.is_answered {
            return Err(io::Error::other(format!("datagram {number} was answered twice")));
        }
        flight.is_answered = true;
        Ok(Some(flight.begun))
    }

    fn give_up(&mut self, batch: &mut Batch, now: u64, measurement: &mut Measurement) -> io::Result<()> {
        let mut lost = 0;
        while self.flights.front().is_some_and(|flight| flight.is_answered || now > flight.begun + PATIENCE) {
            if self.flights.pop_front().is_some_and(|flight| !flight.is_answered) {
                lost += 1;
            }
        }
        measurement.count_lost(lost);
        self.ask(lost as usize, batch, now)
    }
}

/// Send datagrams that nobody answers, `rate` a second or as many as can be sent; what the server's socket dropped
/// is counted as lost, and the measurement ends when the server has taken the last one.
pub fn ingest(address: &Address, size: usize, rate: Option<f64>, plan: Plan) -> io::Result<Measurement> {
    require_room(size)?;
    let &Address::Udp(server) = address else {
        return Err(io::Error::other("ingest needs an address of datagrams: udp://host:port"));
    };
    let socket = address.connect(None)?;
    let mut sender = Sender { socket, batch: Batch::new(DATAGRAMS, size, false), next: 0, rate };
    let mut measurement = Measurement::new(plan)?;
    sender.send_for(plan.warmup, u64::MAX, &measurement)?;
    wait_until_taken(server)?;
    let dropped = Queue::of(server)?.drops;
    measurement.begin()?;
    let sent = sender.send_for(plan.duration, plan.messages, &measurement)?;
    wait_until_taken(server)?;
    measurement.end()?;
    let lost = Queue::of(server)?.drops - dropped;
    measurement.count_sent(sent - lost.min(sent));
    measurement.count_lost(lost);
    Ok(measurement)
}

/// Let bursts of `burst` datagrams wait for a server that is stopped meanwhile, and let it go on until it has taken
/// each; nothing is lost as long as its socket has room for a burst.
///
/// A server that keeps up with a sender is woken for nearly every datagram, the faster the oftener, so a flood compares
/// how servers sleep.  This compares what they do with datagrams that have come.
pub fn ingest_bursts(address: &Address, size: usize, burst: usize, plan: Plan) -> io::Result<Measurement> {
    require_room(size)?;
    let (&Address::Udp(server), Some(pid)) = (address, plan.server) else {
        return Err(io::Error::other("bursts need udp://host:port and --pid, whom to stop"));
    };
    let socket = address.connect(None)?;
    let mut sender = Sender { socket, batch: Batch::new(DATAGRAMS, size, false), next: 0, rate: None };
    let mut measurement = Measurement::new(plan)?;
    let mut dropped = Queue::of(server)?.drops;
    while !measurement.is_over(measurement.now())? {
        let stopped = Stopped::stop(pid)?;
        sender.send_for(plan.duration, burst as u64, &measurement)?;
        drop(stopped);
        wait_until_taken(server)?;
        let drops = Queue::of(server)?.drops;
        measurement.count_sent(burst as u64 - (drops - dropped).min(burst as u64));
        measurement.count_lost(drops - dropped);
        dropped = drops;
    }
    Ok(measurement)
}

/// A process that is stopped until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn stop(pid: i32) -> io::Result<Self> {
        signal(pid, libc::SIGSTOP)?;
        let stopped = Self(pid);
        for _ in 0..20_000 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
                return Ok(stopped);
            }
            thread::sleep(Duration::from_micros(20));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not stop"))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to let go on.
        let _ = signal(self.0, libc::SIGCONT);
    }
}

fn signal(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, number) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Sender {
    socket: OwnedFd,
    batch: Batch,
    next: u64,
    rate: Option<f64>,
}

impl Sender {
    /// Send for so many nanoseconds, and at most so many datagrams; returns how many were sent.
    fn send_for(&mut self, duration: u64, messages: u64, measurement: &Measurement) -> io::Result<u64> {
        let begin = measurement.now();
        let mut sent: u64 = 0;
        loop {
            let passed = measurement.now() - begin;
            if passed >= duration || sent >= messages {
                return Ok(sent);
            }
            let due = self.rate.map_or(u64::MAX, |rate| (passed as f64 * rate / 1e9) as u64);
            let count = due.saturating_sub(sent).min(DATAGRAMS as u64).min(messages - sent) as usize;
            if count == 0 {
                thread::sleep(Duration::from_micros(50));
                continue;
            }
            for index in 0..count {
                self.batch.put(index, |buffer| fill(buffer, self.next + index as u64));
            }
            match self.batch.transmit(&self.socket, count) {
                Ok(count) => {
                    sent += count as u64;
                    self.next += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
                    rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&patience))?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What the kernel says of a bound socket of datagrams.
#[derive(Debug, PartialEq, Eq)]
struct Queue {
    bytes: u64,
    drops: u64,
}

impl Queue {
    fn of(server: SocketAddr) -> io::Result<Self> {
        let file = if server.is_ipv4() { "/proc/net/udp" } else { "/proc/net/udp6" };
        let text = fs::read_to_string(file)?;
        Self::find(&text, server.port())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("nobody listens on udp://{server}")))
    }

    /// The line of the socket that is bound to this port and connected to nobody.
    fn find(text: &str, port: u16) -> Option<Self> {
        text.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (_, local) = fields.get(1)?.rsplit_once(':')?;
            let (_, remote) = fields.get(2)?.rsplit_once(':')?;
            if u16::from_str_radix(local, 16).ok()? != port || remote != "0000" {
                return None;
            }
            let (_, waiting) = fields.get(4)?.split_once(':')?;
            Some(Self { bytes: u64::from_str_radix(waiting, 16).ok()?, drops: fields.last()?.parse().ok()? })
        })
    }
}

fn wait_until_taken(server: SocketAddr) -> io::Result<()> {
    for _ in 0..20_000 {
        if Queue::of(server)?.bytes == 0 {
            return Ok(());
        }
        thread::sleep(Duration::from_micros(500));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the server has left datagrams unread for 10 seconds"))
}

fn require_room(size: usize) -> io::Result<()> {
    match size {
        NUMBER..=65_507 => Ok(()),
        _ => Err(io::Error::other(format!("a datagram of {size} bytes: give 8 to 65507"))),
    }
}

fn fill(buffer: &mut [u8], number: u64) -> usize {
    buffer[..NUMBER].copy_from_slice(&number.to_be_bytes());
    buffer[NUMBER..].fill(number as u8);
    buffer.len()
}

fn read_number(datagram: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(datagram.get(..NUMBER)?.try_into().ok()?))
}

fn is_whole(datagram: &[u8], number: u64) -> bool {
    datagram[NUMBER..].iter().all(|byte| *byte == number as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_bound_socket_is_found_among_others() {
        let text = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode \
                    ref pointer drops\n\
                    1: 0100007F:1388 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 1 2 0 7\n\
                    2: 0100007F:1388 00000000:0000 07 00000000:00000300 00:00000000 00000000 0 0 1 2 0 42\n";
        assert_eq!(Queue::find(text, 5000), Some(Queue { bytes: 768, drops: 42 }));
        assert_eq!(Queue::find(text, 5001), None);
    }
}
