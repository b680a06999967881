//! A hierarchical timer wheel: adding and cancelling cost the same however many timers there are.
//!
//! Facts, and what follows from them:
//!
//! * Most timers never fire: a connection's deadline is moved or dropped long before.  So both must cost O(1), and a
//!   cancelled timer must leave nothing behind, or a million short connections would leave a million entries.
//! * A tick is a millisecond, but a deadline is exact.  So an entry keeps its own time: in the slot of the current
//!   tick only those fire whose time has come, in the order of their times.
//! * A clock that tests turn jumps by hours.  So empty slots are skipped by a bit mask, not visited.

use super::slab::{Slab, Token};

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// 64^7 milliseconds are 139 years.
const LEVELS: usize = 7;
const TICKS_PER_SECOND: f64 = 1000.0;
/// Later than any clock: what is due then may wait in the last slot.
const LAST_TICK: u64 = (1 << (BITS * LEVELS as u32)) - 1;

#[derive(Debug)]
struct Entry<T> {
    when: f64,
    /// Breaks ties: equal times fire in the order they were added.
    order: u64,
    owner: T,
    level: u8,
    slot: u8,
    previous: Option<Token>,
    next: Option<Token>,
}

/// What falls due, each with its owner.
#[derive(Debug)]
pub struct Wheel<T> {
    entries: Slab<Entry<T>>,
    heads: [[Option<Token>; SLOTS]; LEVELS],
    /// A bit for each slot that has entries.
    occupied: [u64; LEVELS],
    tick: u64,
    order: u64,
}

impl<T> Default for Wheel<T> {
    fn default() -> Self {
        Wheel { entries: Slab::default(), heads: [[None; SLOTS]; LEVELS], occupied: [0; LEVELS], tick: 0, order: 0 }
    }
}

fn tick_of(when: f64) -> u64 {
    // A cast saturates: what is before the beginning is due at once, infinity never.
    ((when * TICKS_PER_SECOND) as u64).min(LAST_TICK)
}

impl<T> Wheel<T> {
    /// Have `owner` fall due at `when` (seconds); the token cancels it.
    pub fn add(&mut self, when: f64, owner: T) -> Token {
        self.order += 1;
        let entry = Entry { when, order: self.order, owner, level: 0, slot: 0, previous: None, next: None };
        let token = self.entries.insert(entry);
        self.link(token);
        token
    }

    /// Never let it fall due; false if it has already, or was cancelled.
    pub fn cancel(&mut self, token: Token) -> bool {
        if self.entries.get(token).is_none() {
            return false;
        }
        self.unlink(token);
        self.entries.remove(token);
        true
    }

    /// How many are to fall due.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing will fall due.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A time until which nothing falls due: the next one's own, or the beginning of the slot it waits in.
    pub fn next(&self) -> Option<f64> {
        let (level, slot, start) = self.first_occupied()?;
        if level > 0 {
            return Some(start as f64 / TICKS_PER_SECOND);
        }
        let mut found = f64::INFINITY;
        let mut at = self.heads[level][slot];
        while let Some(entry) = at.and_then(|token| self.entries.get(token)) {
            found = found.min(entry.when);
            at = entry.next;
        }
        Some(found)
    }

    /// Take out everything that is due at `now`, the earliest first.
    pub fn take_due(&mut self, now: f64) -> Vec<T> {
        let target = tick_of(now);
        let mut due: Vec<Entry<T>> = Vec::new();
        while let Some((level, slot, start)) = self.first_occupied() {
            if start > target {
                break;
            }
            self.tick = self.tick.max(start);
            let mut at = self.heads[level][slot];
            let mut left = false;
            while let Some(token) = at {
                let Some(entry) = self.entries.get(token) else { break };
                at = entry.next;
                if level > 0 {
                    self.unlink(token);
                    self.link(token);
                } else if entry.when <= now {
                    self.unlink(token);
                    due.extend(self.entries.remove(token));
                } else {
                    left = true;
                }
            }
            if left {
                break;
            }
        }
        self.tick = self.tick.max(target);
        due.sort_by(|one, other| one.when.total_cmp(&other.when).then(one.order.cmp(&other.order)));
        due.into_iter().map(|entry| entry.owner).collect()
    }

    /// The slot that comes next: level, slot, and the tick at which it begins.
    fn first_occupied(&self) -> Option<(usize, usize, u64)> {
        for level in 0..LEVELS {
            let shift = BITS * level as u32;
            let current = (self.tick >> shift) as usize & (SLOTS - 1);
            let ahead = self.occupied[level] & (!0 << current);
            if ahead != 0 {
                let slot = ahead.trailing_zeros() as usize;
                let rotation = self.tick >> (shift + BITS) << (shift + BITS);
                return Some((level, slot, rotation | (slot as u64) << shift));
            }
        }
        None
    }

    fn link(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(token) else { return };
        let tick = tick_of(entry.when).max(self.tick);
        // The level is that of the highest digit in which the tick differs from now: whoever reaches that digit
        // looks at the lower ones.
        let differing = 63 - ((tick ^ self.tick) | 1).leading_zeros();
        let level = (differing / BITS) as usize;
        let slot = (tick >> (BITS * level as u32)) as usize & (SLOTS - 1);
        let head = self.heads[level][slot];
        (entry.level, entry.slot, entry.previous, entry.next) = (level as u8, slot as u8, None, head);
        if let Some(other) = head.and_then(|other| self.entries.get_mut(other)) {
            other.previous = Some(token);
        }
        self.heads[level][slot] = Some(token);
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, token: Token) {
        let Some(entry) = self.entries.get(token) else { return };
        let (level, slot, previous, next) = (entry.level as usize, entry.slot as usize, entry.previous, entry.next);
        match previous.and_then(|before| self.entries.get_mut(before)) {
            Some(before) => before.next = next,
            None => self.heads[level][slot] = next,
        }
        if let Some(after) = next.and_then(|after| self.entries.get_mut(after)) {
            after.previous = previous;
        }
        if self.heads[level][slot].is_none() {
            self.occupied[level] &= !(1 << slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_times_fire_in_the_order_they_were_added() {
        let mut wheel = Wheel::default();
        for owner in 0..5 {
            wheel.add(7.25, owner);
        }
        assert_eq!(wheel.take_due(7.2499), Vec::<i32>::new());
        assert_eq!(wheel.take_due(7.25), vec![0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_deadline_is_exact_within_a_tick() {
        let mut wheel = Wheel::default();
        wheel.add(1000.0007, "later");
        wheel.add(1000.0002, "sooner");
        assert_eq!(wheel.take_due(1000.0005), vec!["sooner"]);
        assert_eq!(wheel.next(), Some(1000.0007));
        assert_eq!(wheel.take_due(1000.0007), vec!["later"]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_million_cancelled_timers_leave_nothing() {
        let mut wheel = Wheel::default();
        for number in 0..1_000_000 {
            let token = wheel.add(60.0 + f64::from(number) / 1000.0, number);
            assert!(wheel.cancel(token));
            assert!(!wheel.cancel(token));
        }
        assert!(wheel.is_empty());
        assert_eq!(wheel.entries.len(), 0);
        assert_eq!(wheel.next(), None);
    }

    proptest! {
        /// A sorted list is the specification.
        #[test]
        fn it_fires_what_a_sorted_list_would(
            steps in prop::collection::vec((0u8..4, 0.0f64..100_000.0), 1..200),
        ) {
            let mut wheel = Wheel::default();
            let mut list: Vec<(f64, usize, Token)> = Vec::new();
            let mut now = 1000.0;
            for (number, (kind, amount)) in steps.into_iter().enumerate() {
                match kind {
                    0 | 1 => {
                        let when = now + if kind == 0 { amount } else { amount / 1e6 };
                        let token = wheel.add(when, number);
                        list.push((when, number, token));
                    }
                    2 if !list.is_empty() => {
                        let (_, _, token) = list.remove(amount as usize % list.len());
                        prop_assert!(wheel.cancel(token));
                    }
                    _ => {
                        now += amount / 10.0;
                        if let Some(next) = wheel.next() {
                            let earliest = list.iter().map(|item| item.0).fold(f64::INFINITY, f64::min);
                            prop_assert!(next <= earliest);
                        }
                        let mut due: Vec<_> = list.iter().filter(|item| item.0 <= now).copied().collect();
                        due.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
                        list.retain(|item| item.0 > now);
                        let expected: Vec<_> = due.into_iter().map(|item| item.1).collect();
                        prop_assert_eq!(wheel.take_due(now), expected);
                    }
                }
                prop_assert_eq!(wheel.len(), list.len());
            }
        }
    }
}
