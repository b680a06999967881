//! What the two programs of Longshore's benchmarks share.
//!
//! `load` speaks to a server and measures it; `limit` is the echo that a server is compared to.  Both run on one
//! thread, so that each can be pinned to a core of its own.

pub mod address;
pub mod batch;
pub mod clock;

pub mod load;
