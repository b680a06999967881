//! Connections without a socket object: it costs as much as all else that is made of a short one, and few ask for it.
//!
//! The one rule: a descriptor has one owner, who alone closes it.  That is the `Incoming` until a stream takes it, then
//! the stream, and from the moment at which somebody asks for the socket object, that object.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use rustix::net::{SendFlags, send};

use super::cell::GilCell;
use super::sender::address_of;
use super::words;
use crate::engine::Origin;

/// What a stream stands on.
pub enum Socket {
    /// A descriptor that is ours.
    Bare(OwnedFd),
    /// The socket object that owns it.
    Object(Py<PyAny>),
}

impl Socket {
    /// What is given to a stream: an `Incoming`, which loses its descriptor, or a socket object.
    pub fn take(given: Bound<'_, PyAny>) -> PyResult<Self> {
        match given.cast::<Incoming>() {
            Ok(incoming) => incoming.get().take(given.py()).map(Socket::Bare),
            Err(_) => Ok(Socket::Object(given.unbind())),
        }
    }

    /// The descriptor; -1 once the object is closed.
    pub fn descriptor(&self, py: Python<'_>) -> PyResult<RawFd> {
        match self {
            Socket::Bare(descriptor) => Ok(descriptor.as_raw_fd()),
            Socket::Object(object) => object.bind(py).call_method0(intern!(py, "fileno"))?.extract(),
        }
    }

    /// Close it, once nothing is borrowed.
    pub fn close(self, py: Python<'_>) -> PyResult<()> {
        match self {
            Socket::Bare(descriptor) => drop(descriptor),
            Socket::Object(object) => drop(object.bind(py).call_method0(intern!(py, "close"))?),
        }
        Ok(())
    }

    /// The object of the socket in `place`, made now if there is none; one that is closed where nothing is in place.
    ///
    /// Python runs while it is made, and may close what is in place or ask for the object, too.  So the new one owns
    /// the descriptor only from when it is put in place of it, and is parted from it if that is not there any more.
    pub fn object(py: Python<'_>, place: &GilCell<impl AsMut<Option<Socket>>>) -> PyResult<Py<PyAny>> {
        let known = place.with(py, |place| match place.as_mut() {
            None => Err(None),
            Some(Socket::Object(object)) => Ok(object.clone_ref(py)),
            Some(Socket::Bare(descriptor)) => Err(Some(descriptor.as_raw_fd())),
        });
        let descriptor = match known {
            Ok(object) => return Ok(object),
            Err(None) => return Ok(words::CLOSED_SOCKET.get(py)?.call0()?.unbind()),
            Err(Some(descriptor)) => descriptor,
        };
        let options = PyDict::new(py);
        options.set_item(intern!(py, "fileno"), descriptor)?;
        let made = words::SOCKET.get(py)?.call((), Some(&options))?;
        let placed = place.with(py, |place| match place.as_mut() {
            Some(Socket::Bare(bare)) if bare.as_raw_fd() == descriptor => {
                let before = place.as_mut().replace(Socket::Object(made.clone().unbind()));
                if let Some(Socket::Bare(bare)) = before {
                    let _now_the_objects = bare.into_raw_fd();
                }
                true
            }
            _ => false,
        });
        if placed {
            made.call_method1(intern!(py, "setblocking"), (false,))?;
            return Ok(made.unbind());
        }
        made.call_method0(intern!(py, "detach"))?;
        Socket::object(py, place)
    }
}

/// A connection that was accepted, without a socket object; a reactor's `stream` takes it as one.
#[pyclass(frozen, module = "longshore._native")]
pub struct Incoming {
    place: GilCell<Place>,
    origin: Origin,
}

struct Place(Option<Socket>);

impl AsMut<Option<Socket>> for Place {
    fn as_mut(&mut self) -> &mut Option<Socket> {
        &mut self.0
    }
}

impl Incoming {
    pub fn new(descriptor: OwnedFd, origin: Origin) -> Self {
        Incoming { place: GilCell::new(Place(Some(Socket::Bare(descriptor)))), origin }
    }

    fn take(&self, py: Python<'_>) -> PyResult<OwnedFd> {
        match self.place.with(py, |place| place.0.take()) {
            Some(Socket::Bare(descriptor)) => Ok(descriptor),
            _ => Err(words::refused(py, &std::io::Error::from_raw_os_error(libc::EBADF))),
        }
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Incoming {
    /// The peer's address as text.
    #[getter]
    fn peer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        peer_of(py, &self.origin)
    }

    /// The peer's address as accept(2) gives it.
    #[getter]
    fn address(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        address_of(py, self.origin.name())
    }

    /// The descriptor; -1 once it is another's, or closed.
    fn fileno(&self, py: Python<'_>) -> RawFd {
        self.place.with(py, |place| match &place.0 {
            Some(Socket::Bare(descriptor)) => descriptor.as_raw_fd(),
            _ => -1,
        })
    }

    /// Send what the kernel takes now.
    fn send(&self, py: Python<'_>, data: &[u8]) -> PyResult<usize> {
        let sent = self.place.with(py, |place| match &place.0 {
            Some(Socket::Bare(descriptor)) => send(descriptor, data, SendFlags::NOSIGNAL),
            _ => Err(rustix::io::Errno::BADF),
        });
        sent.map_err(|error| words::refused(py, &error.into()))
    }

    /// Close it, unless it is another's.
    fn close(&self, py: Python<'_>) {
        drop(self.place.with(py, |place| place.0.take()));
    }

    /// The socket object, which owns the connection from now on.
    fn detach(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let made = Socket::object(py, &self.place)?;
        drop(self.place.with(py, |place| place.0.take()));
        Ok(made)
    }
}

/// The peer's address as `longshore.addresses.format_peer` has it; nearly everybody's is IPv4.
fn peer_of<'py>(py: Python<'py>, origin: &Origin) -> PyResult<Bound<'py, PyString>> {
    if let (libc::AF_INET, [_, _, high, low, a, b, c, d, ..]) = (origin.family(), origin.name())
        && (*high, *low) != (0, 0)
    {
        let mut text = Text::default();
        for (byte, behind) in [(a, b'.'), (b, b'.'), (c, b'.'), (d, b':')] {
            text.number(u16::from(*byte));
            text.push(behind);
        }
        text.number(u16::from_be_bytes([*high, *low]));
        return Ok(PyString::new(py, text.as_str()));
    }
    let peer = words::FORMAT_PEER.get(py)?.call1((origin.family(), address_of(py, origin.name())?))?;
    Ok(peer.cast_into::<PyString>()?)
}

/// A short text in place: formatting takes as long as the rest of accepting.
#[derive(Default)]
struct Text {
    bytes: [u8; 24],
    length: usize,
}

impl Text {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn number(&mut self, number: u16) {
        let mut unit = [10_000, 1000, 100, 10].into_iter().find(|unit| number >= *unit).unwrap_or(1);
        while unit > 0 {
            self.push(b'0' + (number / unit % 10) as u8);
            unit /= 10;
        }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}
