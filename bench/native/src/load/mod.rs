//! The parts of the load generator.
//!
//! A *tape* holds what is sent and therefore what must come back; a *channel* is a socket, plain or under TLS; a
//! *pipe* is a channel with its place on the tape; an *exchange* turns many pipes over one epoll.  A *measurement*
//! decides when the warm-up is over and when to stop, and holds the figures.  [`streams`], [`churn`], [`idle`] and
//! [`datagrams`] are the ways to load a server.

pub mod channel;
pub mod churn;
pub mod datagrams;
pub mod exchange;
pub mod idle;
pub mod measurement;
pub mod pipe;
pub mod streams;
pub mod tape;
