//! The native reactor of Longshore.
//!
//! Two halves, and one rule for each.  `engine` owns what the kernel and the bytes need and knows nothing of
//! Python: it can be tested alone.  `python` is the only place that uses PyO3: it holds the Python objects, calls
//! handlers, and lends them no part of the engine while they run.

pub mod engine;
#[cfg(feature = "python")]
mod python;
