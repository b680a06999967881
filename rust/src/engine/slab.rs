//! Places with generations: a token of something that is gone never finds what took its place.

use std::num::NonZeroU64;

/// The name of one thing in a [`Slab`]; never given twice, and never zero, so that a place for one may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(NonZeroU64);

impl Token {
    /// The token as a number, for the kernel to keep.
    pub fn as_u64(self) -> u64 {
        self.0.get()
    }

    /// The token that was kept as a number.
    pub fn from_u64(number: u64) -> Self {
        Token(NonZeroU64::new(number).unwrap_or(NonZeroU64::MAX))
    }

    fn new(index: u32, generation: u32) -> Self {
        Token::from_u64(u64::from(index) | u64::from(generation) << 32)
    }

    /// Where it is: a number below that of all things that were ever in at once.
    pub fn index(self) -> usize {
        (self.as_u64() & 0xFFFF_FFFF) as usize
    }

    fn generation(self) -> u32 {
        (self.as_u64() >> 32) as u32
    }
}

#[derive(Debug)]
struct Slot<T> {
    /// Counts the inhabitants from one, so that a stale token is noticed.
    generation: u32,
    value: Option<T>,
}

/// Things of one kind, found by their token.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    /// The empty ones: what was left last is taken first, while it is still in the cache.
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Put something in.
    pub fn insert(&mut self, value: T) -> Token {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return Token::new(index, slot.generation);
        }
        let index = self.slots.len() as u32;
        self.slots.push(Slot { generation: 1, value: Some(value) });
        Token::new(index, 1)
    }

    /// What the token names, unless it is gone.
    #[inline]
    pub fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.index())?;
        if slot.generation == token.generation() { slot.value.as_ref() } else { None }
    }

    /// What the token names, to be changed.
    #[inline]
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index())?;
        if slot.generation == token.generation() { slot.value.as_mut() } else { None }
    }

    /// Take something out; its token names nothing from then on.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.index())?;
        if slot.generation != token.generation() {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(token.index() as u32);
        Some(value)
    }

    /// All that there are.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_something_that_is_gone_does_not_find_what_took_its_place() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_ne!(first, second);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.len(), 1);
    }
}
