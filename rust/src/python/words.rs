//! What Rust needs of Longshore's Python: the errors, in the words that both reactors use.

use std::io;

use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// The module that has them; it is the only one that this half imports.
const MODULE: &str = "longshore.reactor.native";

/// One attribute of the module, looked up once.
pub struct Word {
    name: &'static str,
    found: PyOnceLock<Py<PyAny>>,
}

impl Word {
    const fn new(name: &'static str) -> Self {
        Word { name, found: PyOnceLock::new() }
    }

    /// The attribute itself.
    pub fn get<'py>(&'static self, py: Python<'py>) -> PyResult<&'py Bound<'py, PyAny>> {
        let found =
            self.found.get_or_try_init(py, || Ok::<_, PyErr>(py.import(MODULE)?.getattr(self.name)?.unbind()))?;
        Ok(found.bind(py))
    }

    /// The error that it makes of these arguments.
    pub fn error<'py>(&'static self, py: Python<'py>, args: impl PyCallArgs<'py>) -> PyErr {
        self.get(py).and_then(|make| make.call1(args)).map_or_else(|error| error, PyErr::from_value)
    }
}

/// `NEED_MORE`
pub static NEED_MORE: Word = Word::new("NEED_MORE");
/// The native twin of a framing, or None.
pub static TRANSLATE: Word = Word::new("translate");
/// A panic was caught.
pub static PANICKED: Word = Word::new("panicked");
/// The stream was closed on our side.
pub static CLOSED: Word = Word::new("closed");
/// Output was shut down.
pub static SHUT: Word = Word::new("shut");
/// A deadline has passed.
pub static OVERDUE: Word = Word::new("overdue");
/// What came is no message.
pub static MALFORMED: Word = Word::new("malformed");
/// The peer has closed the connection.
pub static PEER_CLOSED: Word = Word::new("peer_closed");
/// No separator within a limit.
pub static TOO_LONG: Word = Word::new("too_long");
/// The stream ended in the middle.
pub static CUT_SHORT: Word = Word::new("cut_short");
/// There is no framing.
pub static NO_FRAMING: Word = Word::new("no_framing");
/// A separator is empty.
pub static NO_SEPARATOR: Word = Word::new("no_separator");
/// A TLS handshake failed.
pub static REFUSED: Word = Word::new("refused");
/// The peer went away in the TLS handshake.
pub static HUNG_UP: Word = Word::new("hung_up");
/// TLS cannot go with a socket.
pub static BOUND: Word = Word::new("bound");
/// `socket.socket`
pub static SOCKET: Word = Word::new("Socket");
/// A socket object that is closed.
pub static CLOSED_SOCKET: Word = Word::new("closed_socket");
/// A peer's address as text.
pub static FORMAT_PEER: Word = Word::new("format_peer");
/// A stream that the native reactor does not serve any more.
pub static HAND_OVER: Word = Word::new("hand_over");

/// What the system refuses, as Python's own calls of it would raise it.
#[cold]
pub fn refused(py: Python<'_>, error: &io::Error) -> PyErr {
    let number = error.raw_os_error();
    let text = py.import("os").and_then(|os| os.call_method1("strerror", (number,)));
    PyOSError::new_err((number, text.map_or_else(|_| py.None(), Bound::unbind)))
}
