//! The ledger of lent locks: words of memory that a broker and its clients share, changed by atomic steps alone.
//!
//! `longshore.shared.ledger` says what each step means, and is the same in Python.  A word is 0, or a client's number
//! above and the number of its holder below, 0 where the client has the lock and nobody holds it.  The first word is
//! the last fence.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::event::{PollFd, PollFlags, poll};

/// The words; shared memory is mapped by whoever owns it.
pub struct Ledger<'a>(pub &'a [AtomicU64]);

fn word(client: u32, holder: u32) -> u64 {
    u64::from(client) << 32 | u64::from(holder)
}

impl Ledger<'_> {
    /// A fence above all before.
    pub fn next_fence(&self) -> u64 {
        self.0.first().map_or(0, |last| last.fetch_add(1, SeqCst) + 1)
    }

    /// The broker: let `client`, one of whose holders has the lock, be its own broker for it.
    pub fn lend(&self, slot: usize, client: u32, holder: u32) {
        if let Some(place) = self.0.get(slot) {
            place.store(word(client, holder), SeqCst);
        }
    }

    /// The broker: take it back; the holder that has it, or 0.
    pub fn take_back(&self, slot: usize) -> u32 {
        self.0.get(slot).map_or(0, |place| place.swap(0, SeqCst) as u32)
    }

    /// The holder that has it now, or 0.
    pub fn holder(&self, slot: usize) -> u32 {
        self.0.get(slot).map_or(0, |place| place.load(SeqCst) as u32)
    }

    /// The client: take the lock, if it is still lent and nobody holds it.
    pub fn take(&self, slot: usize, client: u32, holder: u32) -> bool {
        self.step(slot, word(client, 0), word(client, holder))
    }

    /// The client: let go of it, if it is still lent.
    pub fn give(&self, slot: usize, client: u32, holder: u32) -> bool {
        self.step(slot, word(client, holder), word(client, 0))
    }

    fn step(&self, slot: usize, from: u64, to: u64) -> bool {
        self.0.get(slot).is_some_and(|place| place.compare_exchange(from, to, SeqCst, SeqCst).is_ok())
    }
}

/// Whether the other end of a stream socket is there.
pub fn is_connected(socket: BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::new(&socket, PollFlags::RDHUP)];
    match poll(&mut watched, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(found) => found == 0,
        // Only a signal can have come between, and what it says will be asked for again.
        Err(error) => error == rustix::io::Errno::INTR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_taken_back_is_no_more_the_clients() {
        let words: Vec<AtomicU64> = (0..3).map(AtomicU64::new).collect();
        let ledger = Ledger(&words);
        ledger.lend(1, 7, 5);
        assert!(!ledger.take(1, 7, 6));
        assert!(ledger.give(1, 7, 5));
        assert!(!ledger.take(1, 8, 5));
        assert!(ledger.take(1, 7, 6));
        assert_eq!(ledger.take_back(1), 6);
        assert!(!ledger.give(1, 7, 6));
        assert!(!ledger.take(1, 7, 6));
        assert_eq!(ledger.holder(1), 0);
    }

    #[test]
    fn one_of_a_client_and_its_broker_gets_the_lock() {
        let words: Vec<AtomicU64> = (0..2).map(AtomicU64::new).collect();
        for _ in 0..1000 {
            let ledger = Ledger(&words);
            ledger.lend(1, 7, 0);
            let (taken, holder) = std::thread::scope(|scope| {
                let client = scope.spawn(|| ledger.take(1, 7, 5));
                let holder = ledger.take_back(1);
                (client.join().is_ok_and(|taken| taken), holder)
            });
            assert_eq!(taken, holder == 5);
        }
    }

    #[test]
    fn the_end_of_a_socket_is_seen_behind_what_it_has_sent() {
        use std::io::Write;
        use std::os::fd::AsFd;
        use std::os::unix::net::UnixStream;

        let Ok((ours, mut theirs)) = UnixStream::pair() else { panic!("no sockets") };
        assert!(is_connected(ours.as_fd()));
        assert!(theirs.write_all(b"x").is_ok());
        assert!(is_connected(ours.as_fd()));
        drop(theirs);
        assert!(!is_connected(ours.as_fd()));
    }
}
