//! Accepting for Python: the socket object and the address, as `socket.socket.accept` gives them.

use std::io::Error;
use std::os::fd::{IntoRawFd, RawFd};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::sender::address_of;
use super::words;
use crate::engine;

/// What takes the connections of one listening socket.
#[pyclass(frozen, module = "longshore._native")]
pub struct Accepting {
    listener: Py<PyAny>,
    /// Numbers of the system's for the sockets to be made: asked for once, as Python makes enumerations of them.
    family: i32,
    kind: i32,
    protocol: i32,
}

#[longshore_shield::shielded]
#[pymethods]
impl Accepting {
    #[new]
    fn new(listener: Bound<'_, PyAny>) -> PyResult<Self> {
        let number = |name: &str| listener.getattr(name)?.extract();
        let (family, kind, protocol) = (number("family")?, number("type")?, number("proto")?);
        Ok(Accepting { listener: listener.unbind(), family, kind, protocol })
    }

    /// The next connection, in non-blocking mode, and its peer's address.
    fn accept<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Py<PyAny>)> {
        static SOCKET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let listener: RawFd = self.listener.bind(py).call_method0(intern!(py, "fileno"))?.extract()?;
        if listener < 0 {
            return Err(words::refused(py, &Error::from_raw_os_error(libc::EBADF)));
        }
        let (socket, peer) = engine::accept(listener).map_err(|error| words::refused(py, &error))?;
        let address = address_of(py, peer.name())?;
        let make =
            SOCKET.get_or_try_init(py, || Ok::<_, PyErr>(py.import("socket")?.getattr("socket")?.unbind()))?.bind(py);
        // The kind says that the socket does not block, so the object need not ask the system to make it so again.
        let kind = self.kind | libc::SOCK_NONBLOCK;
        let made = make.call1((self.family, kind, self.protocol, socket.into_raw_fd()))?;
        Ok((made, address))
    }
}
