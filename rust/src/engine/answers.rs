//! What the calls of a stream answer: values, which the driver acts on when nothing of the engine is borrowed.

use rustix::io::Errno;

/// What has to be told after a call; the driver does it once no part of the engine is borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// Pending output fell to where writing may go on.
    pub drained: bool,
    /// Pending output has come near its limit, for the first time since it was last far below.
    pub near: bool,
    /// The stream is gone: close its descriptor, and tell.
    pub finished: bool,
    /// The error that ended it, unless it was ending already.
    pub error: Option<Errno>,
    /// There is plaintext to be sealed.
    pub sealing: bool,
    /// The peer has to be told that no more comes.
    pub farewell: bool,
}

impl Effects {
    /// Whether there is nothing to tell.
    #[inline]
    pub fn is_empty(self) -> bool {
        !self.drained && !self.near && !self.finished && self.error.is_none() && !self.sealing && !self.farewell
    }

    /// Both.
    pub fn and(self, other: Effects) -> Effects {
        Effects {
            drained: self.drained || other.drained,
            near: self.near || other.near,
            finished: self.finished || other.finished,
            error: self.error.or(other.error),
            sealing: self.sealing || other.sealing,
            farewell: self.farewell || other.farewell,
        }
    }
}

/// What reading has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Nothing to tell.
    Nothing,
    /// Input came, or its end.
    Arrived,
    /// Ciphertext came, or its end.
    Sealed,
    /// The stream is gone.
    Gone(Effects),
}

/// The next thing to do with the messages of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Handle this one.
    Message(&'a [u8]),
    /// Wait for more.
    Dry,
    /// Wait until the peer takes its replies.
    Held,
    /// Nothing any more: the stream is not open.
    Over,
    /// The peer has ended its side, and all was handled.
    PeerClosed,
    /// What came is no message.
    Bad,
}

/// What has come of a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Exchange<'a> {
    /// It is on its way without further ado, and this is next.
    Next(Step<'a>),
    /// It is on its way, and this is to be told before anything else.
    Sent(Effects),
    /// It takes more than putting it behind the others.
    Refused,
}
