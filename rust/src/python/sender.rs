//! Who sends datagrams, for Python: his address, and what a handler sees of him.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use super::cell::GilCell;
use crate::engine;

/// One peer of a datagram socket, and one of our addresses that he has asked.
pub struct Sender {
    origin: engine::Origin,
    address: Py<PyAny>,
    /// What a handler sees of him, while no handler does.
    peer: GilCell<Option<Py<PyAny>>>,
}

/// What an answer to a datagram needs beside its address; opaque to Python.
#[pyclass(frozen, module = "longshore._native")]
pub struct Origin(Arc<Sender>);

impl Origin {
    pub fn sender(&self) -> &Arc<Sender> {
        &self.0
    }
}

impl Sender {
    pub fn new(py: Python<'_>, origin: engine::Origin) -> PyResult<Self> {
        let address = address_of(py, origin.name())?;
        Ok(Sender { origin, address, peer: GilCell::new(None) })
    }

    #[inline]
    pub fn origin(&self) -> &engine::Origin {
        &self.origin
    }

    /// Whether there is nobody to answer.
    pub fn is_unnamed(&self) -> bool {
        // The family alone is the name of a Unix socket that has none.
        self.origin.name().len() <= 2
    }

    /// The address as `socket.recvfrom` gives it.
    pub fn address(&self, py: Python<'_>) -> Py<PyAny> {
        self.address.clone_ref(py)
    }

    pub fn info(self: &Arc<Self>, py: Python<'_>) -> PyResult<Py<Origin>> {
        Py::new(py, Origin(self.clone()))
    }

    #[inline]
    pub fn take_peer(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.peer.with(py, Option::take)
    }

    #[inline]
    pub fn give_peer(&self, py: Python<'_>, peer: Py<PyAny>) {
        let _before = self.peer.with(py, |place| place.replace(peer));
    }

    pub fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.address)?;
        self.peer.visit(|peer| visit.call(peer)).unwrap_or(Ok(()))
    }
}

/// What Python makes of a socket's name.
pub fn address_of(py: Python<'_>, name: &[u8]) -> PyResult<Py<PyAny>> {
    let Some((family, rest)) = name.split_first_chunk::<2>() else { return Ok(py.None()) };
    let number = |at: usize| rest.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or_default();
    let port = rest.first_chunk::<2>().map_or(0, |port| u16::from_be_bytes(*port));
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => (Ipv4Addr::from(number(2)).to_string(), port).into_pyobject(py).map(Bound::into_any),
        libc::AF_INET6 => {
            static INET_NTOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let spell = INET_NTOP
                .get_or_try_init(py, || Ok::<_, PyErr>(py.import("socket")?.getattr("inet_ntop")?.unbind()))?
                .bind(py);
            let text = spell.call1((libc::AF_INET6, PyBytes::new(py, rest.get(6..22).unwrap_or_default())))?;
            let (flow, scope) = (u32::from_be_bytes(number(2)), u32::from_ne_bytes(number(22)));
            (text, port, flow, scope).into_pyobject(py).map(Bound::into_any)
        }
        _ if rest.first() == Some(&0) => Ok(PyBytes::new(py, rest).into_any()),
        _ => {
            // The name of a file ends at a zero, or where there is no more of it.
            let path = rest.split(|byte| *byte == 0).next().unwrap_or_default();
            OsStr::from_bytes(path).into_pyobject(py).map(Bound::into_any).map_err(PyErr::from)
        }
    }
    .map(Bound::unbind)
}
