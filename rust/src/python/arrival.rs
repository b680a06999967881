//! What a task waits for while its input has not come: a future that the stream itself fulfils.
//!
//! It is what asyncio asks of a future that is not its own (`_asyncio_future_blocking`, "Future-compatible objects" in
//! the source of `asyncio.tasks`), as far as one task that waits needs it.  Whoever fulfils it is the reactor in its
//! turn, where no task runs: so the task goes on at once, without another round of the loop.

use pyo3::exceptions::PyRuntimeError;
use pyo3::exceptions::asyncio::CancelledError;
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::cell::GilCell;

/// Who is called once it is done, and in which context.
type Callback = (Py<PyAny>, Option<Py<PyAny>>);

#[derive(Default)]
struct Now {
    /// Whether it was yielded by an `await`, as asyncio wants to know.
    blocking: bool,
    done: bool,
    /// What the task was cancelled with, if it was.
    cancelled: Option<Option<Py<PyAny>>>,
    callback: Option<Callback>,
}

/// One wait of one task.
#[pyclass(frozen, freelist = 64, module = "longshore._native")]
pub struct Arrival {
    link: Py<PyAny>,
    now: GilCell<Now>,
}

impl Arrival {
    pub fn new(link: Py<PyAny>) -> Self {
        Arrival { link, now: GilCell::new(Now { blocking: true, ..Now::default() }) }
    }

    pub fn is_done(&self, py: Python<'_>) -> bool {
        self.now.with(py, |now| now.done)
    }

    /// Let the task go on, now; nothing if it is done already.
    pub fn arrive(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let callback = slf.get().now.with(py, |now| {
            now.done = true;
            now.callback.take()
        });
        let Some((callback, context)) = callback else { return Ok(()) };
        let Some(context) = context else { return callback.bind(py).call1((slf,)).map(drop) };
        // SAFETY: it is a context, or this is an error; it lives until it is left below.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        let outcome = callback.bind(py).call1((slf,));
        // SAFETY: it was entered above, and whoever enters another one in between leaves that.
        if unsafe { ffi::PyContext_Exit(context.as_ptr()) } != 0 {
            return outcome.and(Err(PyErr::fetch(py)));
        }
        outcome.map(drop)
    }

    /// Let the loop call in its next round.
    fn call_soon(slf: &Bound<'_, Self>, (callback, context): Callback) -> PyResult<()> {
        let py = slf.py();
        let options = PyDict::new(py);
        options.set_item(intern!(py, "context"), context)?;
        slf.get().event_loop(py)?.call_method(intern!(py, "call_soon"), (callback, slf), Some(&options)).map(drop)
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Arrival {
    #[getter(_asyncio_future_blocking)]
    fn get_blocking(&self, py: Python<'_>) -> bool {
        self.now.with(py, |now| now.blocking)
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, py: Python<'_>, blocking: bool) {
        self.now.with(py, |now| now.blocking = blocking);
    }

    /// The loop of the tasks that may wait for it.
    #[getter(_loop)]
    fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.link.bind(py).getattr(intern!(py, "loop"))
    }

    /// As a future's; for one task.
    #[pyo3(signature = (callback, *, context = None))]
    fn add_done_callback(slf: &Bound<'_, Self>, callback: Py<PyAny>, context: Option<Py<PyAny>>) -> PyResult<()> {
        let refused = slf.get().now.with(slf.py(), |now| {
            if now.done || now.callback.is_some() {
                return Some((callback, context));
            }
            now.callback = Some((callback, context));
            None
        });
        match refused {
            None => Ok(()),
            Some(callback) if slf.get().is_done(slf.py()) => Self::call_soon(slf, callback),
            Some(_) => Err(PyRuntimeError::new_err("one task waits for this already")),
        }
    }

    /// As a future's.
    #[pyo3(signature = (msg = None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        let before = slf.get().now.with(slf.py(), |now| {
            if now.done {
                return Err(msg);
            }
            now.done = true;
            now.cancelled = Some(msg);
            Ok(now.callback.take())
        });
        match before {
            Ok(Some(callback)) => Self::call_soon(slf, callback).map(|()| true),
            Ok(None) => Ok(true),
            Err(_msg) => Ok(false),
        }
    }

    /// As a future's: None, once it is done.
    fn result(&self, py: Python<'_>) -> PyResult<()> {
        let cancelled =
            self.now.with(py, |now| now.cancelled.as_ref().map(|msg| msg.as_ref().map(|msg| msg.clone_ref(py))));
        match cancelled {
            None => Ok(()),
            Some(None) => Err(CancelledError::new_err(())),
            Some(Some(msg)) => Err(CancelledError::new_err((msg,))),
        }
    }

    /// As a future's.
    fn done(&self, py: Python<'_>) -> bool {
        self.is_done(py)
    }

    /// Something has happened.
    fn __call__(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::arrive(slf)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.link)?;
        self.now
            .visit(|now| match &now.callback {
                Some((callback, context)) => {
                    visit.call(callback)?;
                    visit.call(context)
                }
                None => Ok(()),
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let _callback = self.now.with(py, |now| now.callback.take());
    }
}
