//! The extension module `longshore._native`: the only place that knows PyO3.
//!
//! It lends the engine to nobody: each method borrows it, notes what is to be told, gives it back, and only then calls
//! Python.  Classes are frozen; what they hold of Python is in cells that are reached under Python's lock.

mod acceptor;
mod arrival;
mod cell;
mod datagrams;
mod dispatch;
mod greenlets;
mod incoming;
mod input;
mod ledger;
mod reactor;
mod reactor_methods;
mod sealing;
mod sender;
mod shortcuts;
mod stream;
mod stream_methods;
mod taking;
mod timer;
mod words;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::prelude::*;

/// Run `call`, and make an `InternalError` of a panic; every method that Python calls does (`longshore_shield`).
#[inline]
fn unpanicked<R>(call: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Python::attach(|py| Err(told(py, panic.as_ref()))))
}

#[cold]
fn told(py: Python<'_>, panic: &(dyn Any + Send)) -> PyErr {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    words::PANICKED.error(py, (text,))
}

/// The native reactor of Longshore; `longshore.reactor.native` is what makes it one.
#[pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::acceptor::Accepting;
    #[pymodule_export]
    use super::arrival::Arrival;
    #[pymodule_export]
    use super::datagrams::Datagrams;
    #[pymodule_export]
    use super::incoming::Incoming;
    #[pymodule_export]
    use super::input::Framing;
    #[pymodule_export]
    use super::ledger::Ledger;
    #[pymodule_export]
    use super::reactor::Reactor;
    #[pymodule_export]
    use super::sender::Origin;
    #[pymodule_export]
    use super::shortcuts::{Lines, shorten};
    #[pymodule_export]
    use super::stream::Stream;
    #[pymodule_export]
    use super::taking::{Done, Taking};
    #[pymodule_export]
    use super::timer::Timer;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::shortcuts::give_slots(module.py());
        super::taking::give_slots(module.py());
        module.add("DONE", super::taking::Done::shared(module.py())?)
    }
}
