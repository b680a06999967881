//! Accepting for Python: what `socket.socket.accept` gives, or a connection that has no socket object yet.

use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use pyo3::exceptions::PyBlockingIOError;
use pyo3::intern;
use pyo3::prelude::*;

use super::incoming::Incoming;
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
    /// Whether no socket object is made.
    bare: bool,
}

#[longshore_shield::shielded]
#[pymethods]
impl Accepting {
    #[new]
    #[pyo3(signature = (listener, *, bare = false))]
    fn new(listener: Bound<'_, PyAny>, bare: bool) -> PyResult<Self> {
        let number = |name: &str| listener.getattr(name)?.extract();
        let (family, kind, protocol) = (number("family")?, number("type")?, number("proto")?);
        Ok(Accepting { listener: listener.unbind(), family, kind, protocol, bare })
    }

    /// The next connection, in non-blocking mode, and its peer's address, which a bare one knows itself.
    fn accept<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Py<PyAny>)> {
        let listener: RawFd = self.listener.bind(py).call_method0(intern!(py, "fileno"))?.extract()?;
        if listener < 0 {
            return Err(words::refused(py, &Error::from_raw_os_error(libc::EBADF)));
        }
        let (socket, peer) = engine::accept(listener).map_err(|error| match error.kind() {
            // Each burst ends so, and nobody reads the words.
            ErrorKind::WouldBlock => PyBlockingIOError::new_err((libc::EAGAIN, "nobody waits")),
            _ => words::refused(py, &error),
        })?;
        if self.bare {
            return Ok((Bound::new(py, Incoming::new(socket, peer))?.into_any(), py.None()));
        }
        let address = address_of(py, peer.name())?;
        // The kind says that the socket does not block, so the object need not ask the system to make it so again.
        let kind = self.kind | libc::SOCK_NONBLOCK;
        let made = words::SOCKET.get(py)?.call1((self.family, kind, self.protocol, socket.as_raw_fd()))?;
        let _the_objects = socket.into_raw_fd();
        Ok((made, address))
    }
}
