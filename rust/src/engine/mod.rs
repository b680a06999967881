//! What a reactor does, without Python: sockets, buffers, framings, deadlines and counters.
//!
//! A file is one noun.  Methods answer with plain values that say what has to be told to whom; they call nobody,
//! so whoever drives the engine may call anything in between.  Times are seconds on the driver's clock, given in
//! as `now`.
//!
//! Linux only, on epoll: elsewhere the portable reactor serves.

mod acceptor;
mod answers;
mod buffer;
mod counters;
mod datagrams;
mod deadlines;
mod framing;
mod ledger;
mod poller;
mod sealing;
mod slab;
mod stream;
mod streams;
mod wheel;

pub use acceptor::accept;
pub use answers::{Effects, Exchange, Read, Step};
pub use buffer::{Input, Pool, Taken};
pub use counters::{Counters, HISTOGRAM};
pub use datagrams::{Answer, DATAGRAMS, Datagram, Inbox, LONGEST, Origin, Outbox, take_together};
pub use deadlines::{Due, Timeouts, Watch};
pub use framing::{Cut, Cutter, Framing, Kind, Prefix};
pub use ledger::{Ledger, is_connected};
pub use poller::{Poller, READ, WRITE};
pub use slab::{Slab, Token};
pub use stream::{CHUNK, Options, State, Stream};
pub use streams::Engine;
pub use wheel::Wheel;
