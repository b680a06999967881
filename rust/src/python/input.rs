//! Taking input: the methods of `longshore.buffers.InputBuffer`, on a native stream.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::stream::Stream;
use super::words;
use crate::engine::{Framing as Native, Input, Kind, Prefix, Taken};

/// The native twin of a built-in framing, made by `longshore.reactor.native.translate`.
#[pyclass(frozen, module = "longshore._native")]
pub struct Framing(Arc<Native>);

impl Framing {
    pub fn native(&self) -> Arc<Native> {
        self.0.clone()
    }

    fn of(kind: Kind, max_size: usize, skip: bool) -> Self {
        Framing(Arc::new(Native { kind, max_size, skip }))
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Framing {
    /// There are no messages.
    #[staticmethod]
    fn none() -> Self {
        Framing(Arc::new(Native::NONE))
    }

    /// What arrives is a message.
    #[staticmethod]
    fn raw() -> Self {
        Framing::of(Kind::Raw, usize::MAX, false)
    }

    /// A delimiter ends a message.
    #[staticmethod]
    fn delimited(
        delimiter: Vec<u8>,
        strip_return: bool,
        keep_end: bool,
        max_size: usize,
        skip: bool,
    ) -> PyResult<Self> {
        if delimiter.is_empty() {
            return Err(PyValueError::new_err("a delimiter has at least one byte"));
        }
        Ok(Framing::of(Kind::Delimited { delimiter: delimiter.into(), strip_return, keep_end }, max_size, skip))
    }

    /// The length comes first: `size` bytes of it, 0 for a varint.
    #[staticmethod]
    fn prefixed(size: usize, little: bool, max_size: usize, skip: bool) -> PyResult<Self> {
        let prefix = match (size, little) {
            (0, _) => Prefix::Varint,
            (1..=8, false) => Prefix::Big(size),
            (1..=8, true) => Prefix::Little(size),
            _ => return Err(PyValueError::new_err("a length has at most 8 bytes")),
        };
        Ok(Framing::of(Kind::Prefixed(prefix), max_size, skip))
    }

    /// Every `size` bytes are a message.
    #[staticmethod]
    fn fixed(size: usize) -> PyResult<Self> {
        if size == 0 {
            return Err(PyValueError::new_err("a message of fixed size has at least one byte"));
        }
        Ok(Framing::of(Kind::Fixed(size), size, false))
    }

    /// A netstring.
    #[staticmethod]
    fn netstring(max_size: usize, skip: bool) -> Self {
        Framing::of(Kind::Netstring, max_size, skip)
    }

    /// What this framing puts on the wire for `message`; None if it cannot express it.
    fn encode<'py>(&self, py: Python<'py>, message: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let mut wire = Vec::new();
        self.0.encode(message, &mut wire).then(|| PyBytes::new(py, &wire))
    }

    /// The messages in `pieces` fed one after the other, then None where it ended or an int: where it went wrong.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        pieces: Vec<Vec<u8>>,
        ends: bool,
    ) -> (Vec<Bound<'py, PyBytes>>, bool, usize) {
        let mut input = Input::new(self.0.clone());
        let mut found = Vec::new();
        let count = pieces.len();
        for (number, piece) in pieces.iter().enumerate() {
            input.feed(piece);
            input.ended = ends && number + 1 == count;
            loop {
                match input.take_message() {
                    Taken::Piece(message) => found.push(PyBytes::new(py, message)),
                    Taken::Bad => return (found, false, input.rest().len()),
                    _ => break,
                }
            }
        }
        let left = input.rest().len();
        (found, true, left)
    }
}

/// How many bytes are asked for.
#[inline]
fn wanted(count: isize) -> PyResult<usize> {
    usize::try_from(count)
        .map_err(|_| PyValueError::new_err(format!("{count} bytes were asked for, which is less than none")))
}

/// What a look at the input has found, without what it borrows.
enum Found<'py> {
    Bytes(Bound<'py, PyBytes>),
    NeedMore,
    TooLong(usize),
    Short(usize),
    Closed,
    Bad,
}

impl Stream {
    #[inline]
    fn take<'py>(
        &self,
        py: Python<'py>,
        attempt: impl FnOnce(&mut Input) -> Taken<'_>,
        explain: impl FnOnce(usize, bool) -> PyErr,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.take_now(py, attempt, explain)? {
            Some(piece) => Ok(piece.into_any()),
            None => words::NEED_MORE.get(py).cloned(),
        }
    }

    /// A line that is there whole, or the last one; None where it takes more than that.
    #[inline]
    pub fn line_now<'py>(&self, py: Python<'py>, limit: usize) -> Option<Bound<'py, PyBytes>> {
        self.piece_now(py, |input| input.take_line(limit))
    }

    /// What is there, up to `count` bytes; None if nothing is.
    #[inline]
    pub fn some_now<'py>(&self, py: Python<'py>, count: usize) -> Option<Bound<'py, PyBytes>> {
        self.piece_now(py, |input| input.take_some(count))
    }

    #[inline]
    fn piece_now<'py>(
        &self,
        py: Python<'py>,
        attempt: impl FnOnce(&mut Input) -> Taken<'_>,
    ) -> Option<Bound<'py, PyBytes>> {
        self.with(py, |core| {
            let stream = core.engine.stream_mut(self.token)?;
            if stream.sated() && self.reactor().on_thread() {
                return None;
            }
            match attempt(&mut stream.input) {
                Taken::Piece(piece) if !piece.is_empty() => {
                    stream.taken = stream.taken.saturating_add(1);
                    Some(PyBytes::new(py, piece))
                }
                _ => None,
            }
        })
    }

    fn too_long<'a>(
        &'a self,
        py: Python<'a>,
        separator: &'a [u8],
        limit: usize,
    ) -> impl FnOnce(usize, bool) -> PyErr + 'a {
        move |size, _| words::TOO_LONG.error(py, (&self.peer, size, PyBytes::new(py, separator), limit))
    }

    /// A piece, or nothing as long as it has not come.
    #[inline]
    fn take_now<'py>(
        &self,
        py: Python<'py>,
        attempt: impl FnOnce(&mut Input) -> Taken<'_>,
        explain: impl FnOnce(usize, bool) -> PyErr,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let found = self.with(py, |core| {
            let Some(stream) = core.engine.stream_mut(self.token) else { return Found::Closed };
            if stream.sated() && self.reactor().on_thread() {
                return Found::NeedMore;
            }
            match attempt(&mut stream.input) {
                Taken::Piece(piece) => {
                    stream.taken = stream.taken.saturating_add(1);
                    Found::Bytes(PyBytes::new(py, piece))
                }
                Taken::NeedMore => Found::NeedMore,
                Taken::TooLong(size) => Found::TooLong(size),
                Taken::Short(size) => Found::Short(size),
                Taken::Closed => Found::Closed,
                Taken::Bad => Found::Bad,
            }
        });
        match found {
            Found::Bytes(piece) => Ok(Some(piece)),
            Found::NeedMore => Ok(None),
            Found::TooLong(size) => Err(explain(size, true)),
            Found::Short(size) => Err(explain(size, false)),
            Found::Closed => Err(words::PEER_CLOSED.error(py, (&self.peer,))),
            Found::Bad => Err(self.malformed(py)),
        }
    }

    /// The error for input that is no message, in the words of the framing's Python half.
    #[cold]
    pub fn malformed(&self, py: Python<'_>) -> PyErr {
        let (rest, skipped, ended) = self.with(py, |core| {
            core.engine.stream(self.token).map_or((Vec::new(), None, true), |stream| {
                let input = &stream.input;
                (input.rest().to_vec(), input.skipped(), input.ended)
            })
        });
        let framing = self.own.with(py, |own| own.framing.as_ref().map(|framing| framing.clone_ref(py)));
        words::MALFORMED.error(py, (&self.peer, framing, PyBytes::new(py, &rest), ended, skipped))
    }

    fn unexplained(py: Python<'_>) -> impl FnOnce(usize, bool) -> PyErr {
        move |_, _| words::PANICKED.error(py, ("an answer that cannot be",))
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Stream {
    /// What cuts messages; a new one applies from the byte after the last message taken.
    #[getter]
    fn get_framing(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.own.with(py, |own| own.framing.as_ref().map(|framing| framing.clone_ref(py)))
    }

    #[setter]
    fn set_framing(slf: &Bound<'_, Self>, framing: Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        match me.reactor().framing(py, &framing)? {
            Some(native) => {
                me.with(py, |core| {
                    if let Some(stream) = core.engine.stream_mut(me.token) {
                        stream.input.set_framing(native);
                    }
                });
                let _before = me.own.with(py, |own| own.framing.replace(framing.unbind()));
                Ok(())
            }
            None => {
                let stream = words::HAND_OVER.get(py)?.call1((slf,))?;
                stream.getattr("input")?.setattr("framing", framing)
            }
        }
    }

    /// Whether the stream has ended: there will be no more.
    #[getter]
    fn ended(&self, py: Python<'_>) -> bool {
        self.with(py, |core| core.engine.stream(self.token).is_none_or(|stream| stream.input.ended))
    }

    /// Bytes that wait to be taken; those of a message that is still partial are its framing's business.
    #[getter]
    fn size(&self, py: Python<'_>) -> usize {
        self.with(py, |core| core.engine.stream(self.token).map_or(0, |stream| stream.input.size()))
    }

    /// Whether anything at all is buffered, a partial message included.
    #[getter]
    fn unread(&self, py: Python<'_>) -> bool {
        self.with(py, |core| core.engine.stream(self.token).is_some_and(|stream| stream.input.unread()))
    }

    /// Append what came.
    fn feed(&self, py: Python<'_>, data: &[u8]) {
        self.with(py, |core| {
            if let Some(stream) = core.engine.stream_mut(self.token) {
                stream.input.feed(data);
            }
        });
    }

    /// The stream has ended: there will be no more.
    fn end(&self, py: Python<'_>) {
        self.with(py, |core| {
            if let Some(stream) = core.engine.stream_mut(self.token) {
                stream.input.ended = true;
            }
        });
    }

    /// Forget everything that is buffered.
    fn discard(&self, py: Python<'_>) {
        self.with(py, |core| {
            if let Some(stream) = core.engine.stream_mut(self.token) {
                stream.input.discard();
            }
        });
    }

    /// Everything that is buffered.
    fn take_all<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let all = self.with(py, |core| {
            core.engine.stream_mut(self.token).map(|stream| stream.input.take_all()).unwrap_or_default()
        });
        PyBytes::new(py, &all)
    }

    /// Up to `count` bytes; b"" at the end of the stream.
    pub fn take_some<'py>(&self, py: Python<'py>, count: isize) -> PyResult<Bound<'py, PyAny>> {
        let count = wanted(count)?;
        self.take(py, |input| input.take_some(count), Self::unexplained(py))
    }

    /// Just `count` bytes.
    fn take_exactly<'py>(&self, py: Python<'py>, count: isize) -> PyResult<Bound<'py, PyAny>> {
        let count = wanted(count)?;
        self.take(
            py,
            |input| input.take_exactly(count),
            |size, _| words::CUT_SHORT.error(py, (&self.peer, size, format!("{count} bytes were asked for"))),
        )
    }

    /// A line with its end; the rest at the end of the stream, then b"".
    #[inline]
    pub fn take_line<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Bound<'py, PyAny>> {
        self.take(py, |input| input.take_line(limit), self.too_long(py, b"\n", limit))
    }

    /// A line with its end, or its first `size` bytes if it is longer.
    fn take_line_up_to<'py>(&self, py: Python<'py>, size: usize) -> PyResult<Bound<'py, PyAny>> {
        self.take(py, |input| input.take_line_up_to(size), Self::unexplained(py))
    }

    /// What is there, without taking it; b"" at the end of the stream.
    fn peek<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.take(py, Input::peek, Self::unexplained(py))
    }

    /// Bytes up to and with `separator`.
    fn take_until<'py>(
        &self,
        py: Python<'py>,
        separator: Bound<'py, PyBytes>,
        limit: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        if separator.as_bytes().is_empty() {
            return Err(words::NO_SEPARATOR.error(py, ()));
        }
        self.take(
            py,
            |input| input.take_until(separator.as_bytes(), limit),
            |size, too_long| {
                if too_long {
                    return words::TOO_LONG.error(py, (&self.peer, size, &separator, limit));
                }
                let wanted = separator.repr().map(|shown| format!("{shown} was awaited")).unwrap_or_default();
                words::CUT_SHORT.error(py, (&self.peer, size, wanted))
            },
        )
    }

    /// The next message of the framing.
    fn take_message<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.own.with(py, |own| own.framing.as_ref().is_none_or(|framing| framing.is_none(py))) {
            return Err(words::NO_FRAMING.error(py, ()));
        }
        self.take(py, Input::take_message, Self::unexplained(py))
    }
}
