//! The ledger of lent locks: words of memory that a broker and its clients share, changed by atomic steps alone.
//!
//! `longshore.shared.ledger` says what each step means, and is the same in Python.  A word is 0, or a client's number
//! above and a state below: of a lock, the number of its holder, 0 where the client has the lock and nobody holds it; of
//! a journal, where it ends.  The first word is the last fence.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::event::{PollFd, PollFlags, poll};

/// The words; shared memory is mapped by whoever owns it.
pub struct Ledger<'a>(pub &'a [AtomicU64]);

fn word(client: u32, state: u32) -> u64 {
    u64::from(client) << 32 | u64::from(state)
}

impl Ledger<'_> {
    /// A fence above all before.
    pub fn next_fence(&self) -> u64 {
        self.0.first().map_or(0, |last| last.fetch_add(1, SeqCst) + 1)
    }

    /// The broker: lend the word to `client`, in `state`.
    pub fn lend(&self, slot: usize, client: u32, state: u32) {
        if let Some(place) = self.0.get(slot) {
            place.store(word(client, state), SeqCst);
        }
    }

    /// The broker: take it back; the state that it was in, or 0.
    pub fn take_back(&self, slot: usize) -> u32 {
        self.0.get(slot).map_or(0, |place| place.swap(0, SeqCst) as u32)
    }

    /// The state that it is in, or 0.
    pub fn state(&self, slot: usize) -> u32 {
        self.0.get(slot).map_or(0, |place| place.load(SeqCst) as u32)
    }

    /// The client: from one state to another, if it is still lent, and in that one.  What was written before is seen by
    /// whoever sees the new state.
    pub fn step(&self, slot: usize, client: u32, from: u32, to: u32) -> bool {
        let (from, to) = (word(client, from), word(client, to));
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
        assert!(!ledger.step(1, 7, 0, 6));
        assert!(ledger.step(1, 7, 5, 0));
        assert!(!ledger.step(1, 8, 0, 5));
        assert!(ledger.step(1, 7, 0, 6));
        assert_eq!(ledger.take_back(1), 6);
        assert!(!ledger.step(1, 7, 6, 0));
        assert!(!ledger.step(1, 7, 0, 6));
        assert_eq!(ledger.state(1), 0);
    }

    #[test]
    fn one_of_a_client_and_its_broker_gets_the_lock() {
        let words: Vec<AtomicU64> = (0..2).map(AtomicU64::new).collect();
        for _ in 0..1000 {
            let ledger = Ledger(&words);
            ledger.lend(1, 7, 0);
            let (taken, holder) = std::thread::scope(|scope| {
                let client = scope.spawn(|| ledger.step(1, 7, 0, 5));
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
