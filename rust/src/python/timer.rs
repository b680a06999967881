//! One call that is due at a time.

use pyo3::prelude::*;

use super::reactor::Reactor;
use crate::engine::Token;

/// One call that is due at `when`; `cancel` may be called at any time, twice too.
#[pyclass(frozen, module = "longshore._native")]
pub struct Timer {
    reactor: Py<Reactor>,
    token: Token,
    #[pyo3(get)]
    when: f64,
}

impl Timer {
    pub fn new(reactor: Py<Reactor>, token: Token, when: f64) -> Self {
        Timer { reactor, token, when }
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Timer {
    /// Never call it.
    fn cancel(&self, py: Python<'_>) {
        // Dropped here, where nothing is borrowed: its end may run Python.
        let _call = self.reactor.get().forget_call(py, self.token);
    }
}
