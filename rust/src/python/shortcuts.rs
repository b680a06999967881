//! Methods of Longshore's Python classes that are tried natively first.
//!
//! A frame and the attributes that it looks up cost the interpreter more than finding a line or queueing one.  So some
//! methods of connections and their files have a native twin in their place (`shorten`).  It
//! does what has to be done where nothing is between the connection and its native stream, and calls the method that it
//! has replaced, with what it was given, in every other case: that one is the specification, and judges alone what is
//! unusual, errors included.  The portable reactor knows none of this.

use std::ffi::{CStr, CString};
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::type_object::PyTypeInfo;
use pyo3::types::{PyBytes, PyType};

use super::stream::Stream;
use super::taking::{Done, Taking};
use super::{greenlets, unpanicked};

/// Bytes of a line, unless the caller says otherwise; as `Connection.readline`.
const LINE: usize = 65_536;

/// Where something stands in the objects of a class, a slot of it.
struct Place(AtomicIsize);

impl Place {
    const fn unknown() -> Self {
        Place(AtomicIsize::new(-1))
    }

    /// Learn it from the descriptor of the slot.
    fn learn(&self, kind: &Bound<'_, PyType>, name: &str) -> PyResult<()> {
        let slot = kind.getattr(name)?;
        // SAFETY: it looks at the type of an object that lives, and reads what that type promises.
        unsafe {
            if ffi::Py_TYPE(slot.as_ptr()) != &raw mut ffi::PyMemberDescr_Type {
                return Err(PyTypeError::new_err(format!("{name} is no slot of {kind}")));
            }
            let member = (*slot.as_ptr().cast::<ffi::PyMemberDescrObject>()).d_member;
            self.0.store((*member).offset, Relaxed);
        }
        Ok(())
    }

    /// What stands there in `object`, whose class has the slot.
    #[inline]
    fn look<'py>(&self, object: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        let offset = self.0.load(Relaxed);
        // SAFETY: the callers know that the class of the object has the slot; one that was never set, or deleted, is NULL.
        unsafe {
            let place = object.as_ptr().cast::<u8>().offset(offset).cast::<*mut ffi::PyObject>();
            Bound::from_borrowed_ptr_or_opt(object.py(), *place)
        }
    }
}

/// `_direct` of connections.
static DIRECT: Place = Place::unknown();
/// `_connection` of writing files.
static CONNECTION: Place = Place::unknown();
/// The class of connections that `DIRECT` is a slot of.
static CONNECTIONS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The native stream of a connection, if nothing is between the two.
#[inline]
fn direct<'py>(connection: &Bound<'py, PyAny>) -> Option<Bound<'py, Stream>> {
    DIRECT.look(connection)?.cast_into::<Stream>().ok()
}

/// What an attempt has come to.
enum Attempt<'py> {
    /// It is done, and this is the answer.
    Done(Bound<'py, PyAny>),
    /// It is to be tried again when something came, and until then this greenlet goes on.
    Rest(Bound<'py, PyAny>),
    /// It takes more than can be done here.
    Leave,
}

/// One method, and what of it is done natively.
trait Shortcut: 'static {
    const NAME: &'static CStr;
    /// How it is called, as `inspect.signature` reads it.
    const SIGNATURE: &'static str;
    /// The method that it has replaced.
    fn method() -> &'static PyOnceLock<Py<PyAny>>;
    /// Do it; `args` are those given by place.
    fn attempt<'py>(object: &Bound<'py, PyAny>, args: &[Bound<'py, PyAny>]) -> PyResult<Attempt<'py>>;
}

/// Whether a class has the shortcut already.
fn put_before<S: Shortcut>(kind: &Bound<'_, PyType>) -> bool {
    S::method().get(kind.py()).is_some()
}

/// Put a shortcut into the place of the method.
fn put<S: Shortcut>(kind: &Bound<'_, PyType>) -> PyResult<()> {
    let py = kind.py();
    let name = S::NAME.to_str().unwrap_or_default();
    let method = kind.getattr(name)?.unbind();
    let doc = method.bind(py).getattr("__doc__")?;
    if S::method().set(py, method).is_err() {
        return Err(PyTypeError::new_err(format!("{name} has its shortcut already")));
    }
    let text = doc.extract::<Option<String>>()?.unwrap_or_default();
    let doc = CString::new(format!("{name}{}\n--\n\n{text}", S::SIGNATURE))?;
    // For ever, as the class.
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: S::NAME.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: enter::<S> },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: doc.into_raw(),
    }));
    // SAFETY: the definition is whole and lives for ever.
    let descriptor =
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyDescr_NewMethod(kind.as_type_ptr(), definition)) }?;
    kind.setattr(name, descriptor)
}

/// What comes of an attempt, as numbers that fit the machine's registers.
#[repr(C)]
struct Outcome {
    object: *mut ffi::PyObject,
    next: Next,
}

#[repr(usize)]
enum Next {
    /// Return the object, which is NULL where an exception is set.
    Return,
    /// Let this greenlet go on.
    Rest,
    /// Call the method itself.
    Leave,
}

/// Try once.
///
/// Not inlined: while the greenlet rests its frames are copied, and this one need not be among them.
///
/// # Safety
///
/// As `enter`.
#[inline(never)]
unsafe fn attempt<S: Shortcut>(
    object: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> Outcome {
    // SAFETY: the interpreter called, and so holds its lock; it lends the objects for the call, and a `Bound` is a pointer.
    let (py, object, args) = unsafe {
        let py = Python::assume_attached();
        let args = match count {
            0 => &[],
            _ => std::slice::from_raw_parts(args.cast::<Bound<'_, PyAny>>(), count as usize),
        };
        (py, ManuallyDrop::new(Bound::from_owned_ptr(py, object)), args)
    };
    match unpanicked(|| S::attempt(&object, args)) {
        Ok(Attempt::Done(answer)) => Outcome { object: answer.into_ptr(), next: Next::Return },
        Ok(Attempt::Rest(hub)) => Outcome { object: hub.into_ptr(), next: Next::Rest },
        Ok(Attempt::Leave) => Outcome { object: ptr::null_mut(), next: Next::Leave },
        Err(error) => {
            error.restore(py);
            Outcome { object: ptr::null_mut(), next: Next::Return }
        }
    }
}

/// Try until it is done, and let other greenlets go on in between; None where it takes more.
///
/// While this greenlet rests, this is the only native frame of ours on its stack, and all that it has is pointers to
/// objects of which the callers, or itself, own a reference.
///
/// # Safety
///
/// As `enter`.
#[inline(always)]
unsafe fn persist<S: Shortcut>(
    object: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> Option<*mut ffi::PyObject> {
    loop {
        // SAFETY: as the caller promises; the greenlet is a new reference.
        unsafe {
            let outcome = attempt::<S>(object, args, count);
            match outcome.next {
                Next::Return => return Some(outcome.object),
                Next::Leave => return None,
                Next::Rest => {
                    let back = greenlets::switch_to(Python::assume_attached(), outcome.object);
                    ffi::Py_DECREF(outcome.object);
                    if back.is_null() {
                        roused(object);
                        return Some(ptr::null_mut());
                    }
                    ffi::Py_DECREF(back);
                }
            }
        }
    }
}

/// Something was thrown into the rest: wait for nothing any more.
///
/// # Safety
///
/// Under the interpreter's lock; `object` lives.
#[cold]
#[inline(never)]
unsafe fn roused(object: *mut ffi::PyObject) {
    // SAFETY: as the caller promises.
    let (py, object) = unsafe {
        let py = Python::assume_attached();
        (py, Bound::from_borrowed_ptr(py, object))
    };
    let thrown = PyErr::fetch(py);
    let stream = match object.cast::<Lines>() {
        Ok(lines) => direct(lines.get().connection.bind(py)),
        Err(_) => direct(&object),
    };
    let outcome = unpanicked(|| stream.map_or(Ok(()), |stream| Stream::roused(&stream)));
    outcome.err().unwrap_or(thrown).restore(py);
}

/// What the interpreter calls.
unsafe extern "C" fn enter<S: Shortcut>(
    object: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the interpreter calls it, with what it has promised to methods of this kind.
    unsafe {
        if names.is_null()
            && let Some(done) = persist::<S>(object, args, count)
        {
            return done;
        }
        leave::<S>(object, args, count, names)
    }
}

/// Call the method itself.
///
/// # Safety
///
/// As `enter`.
#[cold]
#[inline(never)]
unsafe fn leave<S: Shortcut>(
    object: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as in `enter`; values given by name stand behind the others.
    unsafe {
        let py = Python::assume_attached();
        let Some(method) = S::method().get(py) else { return ptr::null_mut() };
        let named = if names.is_null() { 0 } else { ffi::PyTuple_GET_SIZE(names) };
        let mut all = Vec::with_capacity((count + named + 1) as usize);
        all.push(object);
        if count + named > 0 {
            all.extend_from_slice(std::slice::from_raw_parts(args, (count + named) as usize));
        }
        ffi::PyObject_Vectorcall(method.as_ptr(), all.as_ptr(), (count + 1) as usize, names)
    }
}

/// A shortcut, its name, how it is called, and what it tries.
macro_rules! shortcut {
    ($kind:ident, $name:literal, $signature:literal, |$object:ident, $args:ident| $attempt:block) => {
        struct $kind;

        impl Shortcut for $kind {
            const NAME: &'static CStr = $name;
            const SIGNATURE: &'static str = $signature;

            fn method() -> &'static PyOnceLock<Py<PyAny>> {
                static METHOD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
                &METHOD
            }

            #[inline]
            fn attempt<'py>($object: &Bound<'py, PyAny>, $args: &[Bound<'py, PyAny>]) -> PyResult<Attempt<'py>> $attempt
        }
    };
}

shortcut!(SendAll, c"sendall", "($self, data)", |connection, args| {
    let (Some(stream), [data]) = (direct(connection), args) else { return Ok(Attempt::Leave) };
    if !Stream::offer(&stream, data)? {
        return Ok(Attempt::Leave);
    }
    Ok(Attempt::Done(connection.py().None().into_bound(connection.py())))
});

shortcut!(Write, c"write", "($self, data)", |file, args| {
    let (Some(connection), [data]) = (CONNECTION.look(file), args) else { return Ok(Attempt::Leave) };
    // SAFETY: it looks at the type of an object that lives.
    let known = CONNECTIONS
        .get(file.py())
        .is_some_and(|kind| unsafe { ffi::PyObject_TypeCheck(connection.as_ptr(), kind.as_ptr().cast()) } != 0);
    let Some(stream) = known.then(|| direct(&connection)).flatten() else { return Ok(Attempt::Leave) };
    if !Stream::offer(&stream, data)? {
        return Ok(Attempt::Leave);
    }
    Ok(Attempt::Done(data.len()?.into_pyobject(file.py())?.into_any()))
});

shortcut!(ReadLine, c"readline", "($self, limit=65536)", |connection, args| {
    match (direct(connection), limit(args)) {
        (Some(stream), Some(limit)) => taken(&stream, |input| input.line_now(connection.py(), limit)),
        _ => Ok(Attempt::Leave),
    }
});

shortcut!(Recv, c"recv", "($self, count, flags=0)", |connection, args| {
    match (direct(connection), only(args)) {
        (Some(stream), Some(count)) => taken(&stream, |input| input.some_now(connection.py(), count)),
        _ => Ok(Attempt::Leave),
    }
});

shortcut!(LinesOf, c"_lines", "($self, limit)", |connection, args| {
    let (Some(_), Some(limit)) = (direct(connection), only(args)) else { return Ok(Attempt::Leave) };
    let lines = Lines { connection: connection.clone().unbind(), limit };
    Ok(Attempt::Done(Bound::new(connection.py(), lines)?.into_any()))
});

shortcut!(AsyncSendAll, c"sendall", "($self, data)", |connection, args| {
    let (Some(stream), [data]) = (direct(connection), args) else { return Ok(Attempt::Leave) };
    if !Stream::offer(&stream, data)? {
        return Ok(Attempt::Leave);
    }
    Done::shared(connection.py()).map(Attempt::Done)
});

shortcut!(AsyncReadLine, c"readline", "($self, limit=65536)", |connection, args| {
    let (Some(stream), Some(limit)) = (direct(connection), limit(args)) else { return Ok(Attempt::Leave) };
    Ok(Taking::line(&stream, limit)?.map_or(Attempt::Leave, Attempt::Done))
});

shortcut!(AsyncRecv, c"recv", "($self, count)", |connection, args| {
    let (Some(stream), Some(count)) = (direct(connection), only(args)) else { return Ok(Attempt::Leave) };
    Ok(Taking::some(&stream, count)?.map_or(Attempt::Leave, Attempt::Done))
});

/// The only argument, a number of bytes; None for whatever else.
#[inline]
fn only(args: &[Bound<'_, PyAny>]) -> Option<usize> {
    let [count] = args else { return None };
    count.extract::<usize>().ok()
}

/// The limit of a line, where that is the only argument, or there is none.
#[inline]
fn limit(args: &[Bound<'_, PyAny>]) -> Option<usize> {
    if args.is_empty() { Some(LINE) } else { only(args) }
}

/// A piece that is there, or a rest until it is.
#[inline]
fn taken<'py>(
    stream: &Bound<'py, Stream>,
    take: impl Fn(&Stream) -> Option<Bound<'py, PyBytes>>,
) -> PyResult<Attempt<'py>> {
    match take(stream.get()) {
        Some(piece) => Ok(Attempt::Done(piece.into_any())),
        None => Ok(Stream::rest(stream)?.map_or(Attempt::Leave, Attempt::Rest)),
    }
}

/// The lines of a connection, up to the end of its stream.
#[pyclass(frozen, module = "longshore._native")]
pub struct Lines {
    connection: Py<PyAny>,
    limit: usize,
}

#[longshore_shield::shielded]
#[pymethods]
impl Lines {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(slf: Bound<'_, Self>) -> PyResult<Option<Bound<'_, PyAny>>> {
        let py = slf.py();
        // SAFETY: the object lives; a new reference, or NULL and an exception, or NULL at the end.
        let line = unsafe { Bound::from_owned_ptr_or_opt(py, next_line(slf.as_ptr())) };
        match line {
            None => PyErr::take(py).map_or(Ok(None), Err),
            Some(line) => Ok(Some(line)),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.connection)
    }
}

shortcut!(NextLine, c"__next__", "($self)", |iterator, _args| {
    let lines = iterator.cast::<Lines>()?.get();
    match direct(lines.connection.bind(iterator.py())) {
        Some(stream) => taken(&stream, |input| input.line_now(stream.py(), lines.limit)),
        None => Ok(Attempt::Leave),
    }
});

/// `Lines.__next__` as the slot that `for` calls.
unsafe extern "C" fn next_line(lines: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter lends it for the call, under its lock.
    unsafe { persist::<NextLine>(lines, ptr::null(), 0).unwrap_or_else(|| read_line(lines)) }
}

/// As the connection's own method does.
///
/// # Safety
///
/// As `next_line`.
#[cold]
#[inline(never)]
unsafe fn read_line(lines: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    let (py, lines) = unsafe {
        let py = Python::assume_attached();
        (py, Bound::from_borrowed_ptr(py, lines))
    };
    let outcome = unpanicked(|| {
        let lines = lines.cast::<Lines>()?.get();
        let Some(method) = ReadLine::method().get(py) else { return Ok(None) };
        let line = method.bind(py).call1((&lines.connection, lines.limit))?;
        Ok(if line.len()? == 0 { None } else { Some(line) })
    });
    match outcome {
        Ok(line) => line.map_or(ptr::null_mut(), Bound::into_ptr),
        Err(error) => {
            error.restore(py);
            ptr::null_mut()
        }
    }
}

/// Let `for` call what takes a line, without a frame in between.
pub fn give_slots(py: Python<'_>) {
    // SAFETY: the type is ours and was just made.
    unsafe { (*Lines::type_object_raw(py)).tp_iternext = Some(next_line) };
}

/// Put shortcuts into the place of methods of `kind`, one of the classes that have some.
///
/// Whoever imports a module anew gets classes of the same names that go without: what is known here of slots and
/// methods is known of the first ones, whose objects may live on.
#[pyfunction]
pub fn shorten(kind: &Bound<'_, PyType>) -> PyResult<()> {
    unpanicked(|| match kind.name()?.to_str()? {
        "Connection" if put_before::<SendAll>(kind) => Ok(()),
        "AsyncConnection" if put_before::<AsyncSendAll>(kind) => Ok(()),
        "_Writer" if put_before::<Write>(kind) => Ok(()),
        "Connection" => {
            DIRECT.learn(kind, "_direct")?;
            let _known = CONNECTIONS.set(kind.py(), kind.clone().unbind());
            put::<SendAll>(kind)?;
            put::<ReadLine>(kind)?;
            put::<Recv>(kind)?;
            put::<LinesOf>(kind)
        }
        "AsyncConnection" => {
            // The slot is the same, of the class on which both are based.
            DIRECT.learn(kind, "_direct")?;
            put::<AsyncSendAll>(kind)?;
            put::<AsyncReadLine>(kind)?;
            put::<AsyncRecv>(kind)
        }
        "_Writer" => {
            CONNECTION.learn(kind, "_connection")?;
            put::<Write>(kind)
        }
        name => Err(PyTypeError::new_err(format!("there are no shortcuts for {name}"))),
    })
}
