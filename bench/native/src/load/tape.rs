//! What is sent, and what an echo must answer: the same endless run of messages for every connection.

use std::str::FromStr;

/// How messages are told apart; an echo returns them byte by byte under each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Bytes of a known size.
    Raw,
    /// Printable bytes and a line feed.
    Lines,
    /// Four bytes of length, big-endian, and the payload.
    LengthPrefixed,
}

impl Framing {
    /// Bytes that the framing adds to a message.
    pub fn overhead(self) -> usize {
        match self {
            Self::Raw => 0,
            Self::Lines => 1,
            Self::LengthPrefixed => 4,
        }
    }
}

impl FromStr for Framing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "lines" => Ok(Self::Lines),
            "length-prefixed" => Ok(Self::LengthPrefixed),
            _ => Err(format!("{text:?} is no framing: raw, lines, length-prefixed")),
        }
    }
}

/// An endless run of numbered messages of one size.
///
/// It repeats after a while, and each connection starts elsewhere on it, so that an answer that was lost, doubled or
/// sent to somebody else is seen by comparing bytes, and no connection needs memory for what it has sent.
pub struct Tape {
    size: usize,
    period: usize,
    // Twice the period, so that a part seldom has to stop at the end.
    bytes: Vec<u8>,
}

impl Tape {
    /// A tape of messages of `size` bytes each, framing included.
    pub fn new(framing: Framing, size: usize) -> Result<Self, String> {
        let overhead = framing.overhead();
        if size <= overhead {
            return Err(format!("a message of {size} bytes has no room: this framing alone takes {overhead}"));
        }
        let count = (65_536 / size + 1).max(5);
        let mut bytes = Vec::with_capacity(2 * count * size);
        for _ in 0..2 {
            for number in 0..count {
                write_message(&mut bytes, framing, number, size - overhead);
            }
        }
        Ok(Self { size, period: count * size, bytes })
    }

    /// Bytes of one message, framing included.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Where the connection with this number begins.
    pub fn start(&self, connection: usize) -> u64 {
        (connection * self.size % self.period) as u64
    }

    /// Up to `length` bytes from `position` on; fewer where the tape begins again.
    pub fn part(&self, position: u64, length: usize) -> &[u8] {
        let begin = (position % self.period as u64) as usize;
        &self.bytes[begin..self.bytes.len().min(begin + length)]
    }

    /// Whether these bytes are what stands at `position`.
    pub fn matches(&self, mut position: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let part = self.part(position, bytes.len());
            if part != &bytes[..part.len()] {
                return false;
            }
            position += part.len() as u64;
            bytes = &bytes[part.len()..];
        }
        true
    }
}

/// One message: its number, then printable characters that depend on it.
fn write_message(out: &mut Vec<u8>, framing: Framing, number: usize, payload: usize) {
    if framing == Framing::LengthPrefixed {
        out.extend_from_slice(&(payload as u32).to_be_bytes());
    }
    let label = format!("{number:08x}");
    let filler = (0..).map(|index| b'!' + ((number + index) % 94) as u8);
    out.extend(label.bytes().chain(filler).take(payload));
    if framing == Framing::Lines {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_framing_gives_messages_of_the_size_asked_for() {
        let lines = Tape::new(Framing::Lines, 64).expect("tape");
        assert_eq!(lines.part(0, 64).iter().position(|byte| *byte == b'\n'), Some(63));
        let prefixed = Tape::new(Framing::LengthPrefixed, 64).expect("tape");
        assert_eq!(&prefixed.part(64, 4), &60_u32.to_be_bytes());
        assert_eq!(Tape::new(Framing::Raw, 9).expect("tape").part(0, 9), b"00000000!");
    }

    #[test]
    fn a_part_over_the_end_of_the_tape_is_compared_all_the_same() {
        let tape = Tape::new(Framing::Raw, 1000).expect("tape");
        let long: Vec<u8> = (0..300).flat_map(|number| tape.part(number * 1000, 1000).to_vec()).collect();
        assert!(tape.matches(0, &long));
        assert!(tape.matches(17, &long[17..]));
        assert!(!tape.matches(1000, &long));
    }

    #[test]
    fn one_wrong_byte_is_seen() {
        let tape = Tape::new(Framing::Lines, 64).expect("tape");
        let mut answer = tape.part(0, 6400).to_vec();
        answer[6399] ^= 1;
        assert!(!tape.matches(0, &answer));
    }

    #[test]
    fn a_size_that_leaves_no_room_is_refused() {
        assert!(Tape::new(Framing::LengthPrefixed, 4).is_err());
    }
}
