//! The kernel's side of waiting: epoll, an eventfd that wakes it, and a timer that makes it readable.
//!
//! Facts, and what follows from them:
//!
//! * Level-triggered epoll reports what is left again and again, and puts what it has reported to the end of its
//!   list.  So each source takes a bounded bite, and a wait that returns few of many is fair by itself.
//! * An epoll descriptor is readable when one of its own is.  So an event loop can watch all of a reactor through it;
//!   time is no descriptor, so a timerfd stands for the next deadline while an event loop does the waiting.
//! * Writing to an eventfd is safe from any thread and from a signal handler, and two writes are one wake-up.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::slab::Token;

/// Ready for reading, or wanting to know.
pub const READ: u8 = 1;
/// Ready for writing, or wanting to know.
pub const WRITE: u8 = 2;

/// Events taken from the kernel at once: as many sources get their turn before timers and other threads get theirs.
const EVENTS: usize = 64;

/// Tokens that are the poller's own.
const WAKER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// One epoll descriptor and what wakes it; all methods take `&self`, as the kernel does the locking.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    waker: OwnedFd,
    timer: OwnedFd,
}

fn timespec(seconds: f64) -> Timespec {
    let whole = seconds.clamp(0.0, 1e9);
    Timespec { tv_sec: whole as i64, tv_nsec: ((whole - whole.floor()) * 1e9) as i64 }
}

fn flags(events: u8) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    if events & READ != 0 {
        flags |= epoll::EventFlags::IN;
    }
    if events & WRITE != 0 {
        flags |= epoll::EventFlags::OUT;
    }
    flags
}

impl Poller {
    /// A poller of its own.
    ///
    /// # Errors
    ///
    /// Out of descriptors, or memory.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        Ok(Poller { epoll, waker, timer })
    }

    /// The descriptor that is readable when there is something to do.
    pub fn fileno(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// All that it has open.
    pub fn descriptors(&self) -> [RawFd; 3] {
        [self.epoll.as_raw_fd(), self.waker.as_raw_fd(), self.timer.as_raw_fd()]
    }

    /// Wait for at most `timeout` seconds (`None`: for ever), and append what is ready.
    ///
    /// # Errors
    ///
    /// `Interrupted` by a signal; anything else is a bug.
    pub fn wait(&self, ready: &mut Vec<(Token, u8)>, timeout: Option<f64>) -> io::Result<bool> {
        let mut buffer = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let timeout = timeout.map(timespec);
        let (events, _) = epoll::wait(&self.epoll, &mut buffer, timeout.as_ref())?;
        let mut woken = false;
        for event in events {
            let (data, flags) = (event.data.u64(), event.flags);
            match data {
                WAKER => woken = true,
                TIMER => self.drain(&self.timer),
                _ => {
                    // An error or a hang-up is found out by reading or writing, whichever is wanted.
                    let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
                    let mut found = 0;
                    if broken || flags.contains(epoll::EventFlags::IN) {
                        found |= READ;
                    }
                    if broken || flags.contains(epoll::EventFlags::OUT) {
                        found |= WRITE;
                    }
                    ready.push((Token::from_u64(data), found));
                }
            }
        }
        Ok(woken)
    }

    /// Watch a descriptor for `events`; `known` says whether it is watched already.
    ///
    /// # Errors
    ///
    /// The descriptor is not one that can be watched, or there is no memory.
    pub fn watch(&self, fd: RawFd, token: Token, events: u8, known: bool) -> io::Result<()> {
        // SAFETY: whoever owns the descriptor tells the poller to forget it before closing it, and it is only
        // borrowed for this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let data = epoll::EventData::new_u64(token.as_u64());
        if known {
            match epoll::modify(&self.epoll, fd, data, flags(events)) {
                // It was closed behind our back, and another one has its number.
                Err(rustix::io::Errno::NOENT) => {}
                other => return Ok(other?),
            }
        }
        match epoll::add(&self.epoll, fd, data, flags(events)) {
            Err(rustix::io::Errno::EXIST) => Ok(epoll::modify(&self.epoll, fd, data, flags(events))?),
            other => Ok(other?),
        }
    }

    /// Watch a descriptor no more.
    pub fn forget(&self, fd: RawFd) {
        if fd < 0 {
            return;
        }
        // SAFETY: as in `watch`.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // One that was closed already is forgotten by the kernel itself.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// End the wait that goes on, or the next one; from any thread, and in a signal handler.
    pub fn wake(&self) {
        // It fails only where 2^64 wake-ups were not noticed.
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
    }

    /// Take the wake-up back.
    pub fn awake(&self) {
        self.drain(&self.waker);
    }

    /// Have the descriptor become readable in so many seconds.
    pub fn ring_in(&self, seconds: f64) {
        // Zero would switch it off.
        let spec = Itimerspec { it_interval: timespec(0.0), it_value: timespec(seconds.max(1e-9)) };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
    }

    fn drain(&self, fd: &OwnedFd) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(fd, &mut count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_from_another_thread_ends_the_wait() {
        let poller = std::sync::Arc::new(Poller::new().unwrap());
        let other = poller.clone();
        let thread = std::thread::spawn(move || other.wake());
        let mut ready = Vec::new();
        assert!(poller.wait(&mut ready, None).unwrap());
        thread.join().unwrap();
        assert!(ready.is_empty());
        poller.awake();
        assert!(!poller.wait(&mut ready, Some(0.0)).unwrap());
    }

    #[test]
    fn a_deadline_makes_the_descriptor_readable() {
        let poller = Poller::new().unwrap();
        poller.ring_in(0.001);
        let mut fds = [rustix::event::PollFd::new(&poller.epoll, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut fds, None).unwrap(), 1);
        assert!(!poller.wait(&mut Vec::new(), Some(0.0)).unwrap());
    }
}
