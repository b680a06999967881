//! The machine's limit: an echo that does not look at the bytes.
//!
//! One thread, level-triggered epoll, one receive and one send per readiness; over UDP one recvmmsg(2) and one
//! sendmmsg(2).  A server on the same machine cannot answer with much less work than this, so its processor time per
//! message is what every other server's is divided by.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use longshore_bench::address::Address;
use longshore_bench::batch::Batch;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};

/// An echo as lean as this machine lets it be; the address stands in the first line of its output.
#[derive(Parser)]
struct Options {
    /// Where to listen: tcp://host:port, udp://host:port or unix:///path
    #[arg(default_value = "tcp://127.0.0.1:0")]
    address: Address,
    /// `ingest` takes datagrams and answers none; `raw` and `lines` are the same, as bytes are not looked at
    #[arg(long, default_value = "raw", value_parser = ["raw", "lines", "ingest"])]
    behaviour: String,
}

/// The event of the listening socket; connections have their descriptor's number.
const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 256;
const ACCEPTS: usize = 64;
const DATAGRAMS: usize = 64;
const BUFFER: usize = 65_536;

fn main() -> ExitCode {
    let Err(error) = serve(&Options::parse());
    eprintln!("limit: {error}");
    ExitCode::FAILURE
}

/// Serve until a system call fails in a way that ends the server.
fn serve(options: &Options) -> io::Result<Infallible> {
    let (socket, address) = options.address.listen()?;
    println!("{address}");
    io::stdout().flush()?;
    match address {
        Address::Udp(_) => echo_datagrams(&socket, options.behaviour != "ingest"),
        _ => Streams::new(socket, matches!(address, Address::Tcp(_)))?.run(),
    }
}

/// A connection, and what the kernel has not taken of its answers.
struct Connection {
    socket: OwnedFd,
    unsent: Vec<u8>,
}

struct Streams {
    epoll: OwnedFd,
    listener: OwnedFd,
    is_tcp: bool,
    connections: Vec<Option<Connection>>,
    buffer: Box<[u8]>,
}

impl Streams {
    fn new(listener: OwnedFd, is_tcp: bool) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Ok(Self { epoll, listener, is_tcp, connections: Vec::new(), buffer })
    }

    fn run(mut self) -> io::Result<Infallible> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS];
        loop {
            let count = match epoll::wait(&self.epoll, &mut events, None) {
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    number => self.answer(number as usize),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS {
            let socket = match rustix::net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => break,
                Err(Errno::MFILE | Errno::NFILE) => {
                    thread::sleep(Duration::from_millis(10));
                    break;
                }
                Err(_) => continue,
            };
            if self.is_tcp {
                sockopt::set_tcp_nodelay(&socket, true)?;
            }
            let number = socket.as_raw_fd() as usize;
            epoll::add(&self.epoll, &socket, EventData::new_u64(number as u64), EventFlags::IN)?;
            if self.connections.len() <= number {
                self.connections.resize_with(number + 1, || None);
            }
            self.connections[number] = Some(Connection { socket, unsent: Vec::new() });
        }
        Ok(())
    }

    fn answer(&mut self, number: usize) {
        // A connection that was closed earlier in this turn may have an event left.
        let Some(connection) = self.connections[number].as_mut() else { return };
        let kept = if connection.unsent.is_empty() {
            connection.echo(&self.epoll, &mut self.buffer)
        } else {
            connection.send_rest(&self.epoll)
        };
        if !matches!(kept, Ok(true) | Err(Errno::AGAIN)) {
            self.connections[number] = None;
        }
    }
}

impl Connection {
    /// Whether the connection goes on.
    fn echo(&mut self, epoll: &OwnedFd, buffer: &mut [u8]) -> Result<bool, Errno> {
        let (received, _) = rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty())?;
        if received == 0 {
            return Ok(false);
        }
        let sent = match rustix::net::send(&self.socket, &buffer[..received], SendFlags::NOSIGNAL) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(error) => return Err(error),
        };
        if sent < received {
            self.unsent.extend_from_slice(&buffer[sent..received]);
            self.watch(epoll, EventFlags::OUT)?;
        }
        Ok(true)
    }

    fn send_rest(&mut self, epoll: &OwnedFd) -> Result<bool, Errno> {
        let sent = rustix::net::send(&self.socket, &self.unsent, SendFlags::NOSIGNAL)?;
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
            self.watch(epoll, EventFlags::IN)?;
        }
        Ok(true)
    }

    fn watch(&self, epoll: &OwnedFd, flags: EventFlags) -> Result<(), Errno> {
        let number = self.socket.as_raw_fd() as u64;
        epoll::modify(epoll, &self.socket, EventData::new_u64(number), flags)
    }
}

fn echo_datagrams(socket: &OwnedFd, answers: bool) -> io::Result<Infallible> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, socket, EventData::new_u64(0), EventFlags::IN)?;
    let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 1];
    let mut batch = Batch::new(DATAGRAMS, BUFFER, answers);
    loop {
        match epoll::wait(&epoll, &mut events, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let count = match batch.receive(socket) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        // A full send buffer drops the rest of the batch, as a full wire would.
        if !answers {
            continue;
        }
        match batch.reply(socket, count) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
}
