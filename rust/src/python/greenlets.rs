//! Greenlets: which one runs, and switching to another, by greenlet's own C interface (`greenlet.h`).
//!
//! Whoever switches holds references of Python's and nothing else: no part of the engine is borrowed, as anything may
//! run before he comes back, and he may come back by an exception (`throw`), never by a panic.

use std::ffi::{c_int, c_void};
use std::ptr;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use pyo3::{ffi, intern};

/// `PyGreenlet_Type_NUM` and its fellows.
const KIND: usize = 0;
const CURRENT: usize = 4;
const SWITCH: usize = 6;
const PARENT: usize = 11;

/// What this half uses of the interface.
struct Interface {
    kind: *mut ffi::PyTypeObject,
    current: unsafe extern "C" fn() -> *mut ffi::PyObject,
    switch: unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject, *mut ffi::PyObject) -> *mut ffi::PyObject,
    parent: unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject,
}

// SAFETY: functions and a type of a module that is never unloaded, used under the interpreter's lock.
unsafe impl Send for Interface {}
// SAFETY: as above.
unsafe impl Sync for Interface {}

static FOUND: PyOnceLock<Interface> = PyOnceLock::new();

/// The interface; None as long as nobody has imported greenlet, as there is no greenlet then.
#[inline]
fn interface(py: Python<'_>) -> PyResult<Option<&'static Interface>> {
    match FOUND.get(py) {
        Some(found) => Ok(Some(found)),
        None => find(py),
    }
}

#[cold]
fn find(py: Python<'_>) -> PyResult<Option<&'static Interface>> {
    let modules = py.import(intern!(py, "sys"))?.getattr(intern!(py, "modules"))?.cast_into::<PyDict>()?;
    if !modules.contains(intern!(py, "greenlet"))? {
        return Ok(None);
    }
    // SAFETY: the name is a text that ends; what is asked for is a table of pointers, or NULL and an exception.
    let table = unsafe { ffi::PyCapsule_Import(c"greenlet._C_API".as_ptr(), 0 as c_int) }.cast::<*mut c_void>();
    if table.is_null() {
        return Err(PyErr::take(py).unwrap_or_else(|| PyRuntimeError::new_err("greenlet gives no C interface")));
    }
    // SAFETY: `greenlet.h` says at which place of the table is what, and of which type; the last of these has been there
    // since greenlet 1.0.
    let found = unsafe {
        Interface {
            kind: (*table.add(KIND)).cast(),
            current: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut ffi::PyObject>(
                *table.add(CURRENT),
            ),
            switch: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject, *mut ffi::PyObject) -> *mut ffi::PyObject,
            >(*table.add(SWITCH)),
            parent: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject>(
                *table.add(PARENT),
            ),
        }
    };
    Ok(Some(FOUND.get_or_init(py, || found)))
}

/// The greenlet that runs now and the one that it would return to; None where nothing can be switched to.
#[inline]
pub fn current_and_parent(py: Python<'_>) -> PyResult<Option<(Bound<'_, PyAny>, Bound<'_, PyAny>)>> {
    let Some(interface) = interface(py)? else { return Ok(None) };
    // SAFETY: under the interpreter's lock; new references, and no parent is no error.
    unsafe {
        let current = Bound::from_owned_ptr_or_err(py, (interface.current)())?;
        let parent = Bound::from_owned_ptr_or_opt(py, (interface.parent)(current.as_ptr()));
        Ok(parent.map(|parent| (current, parent)))
    }
}

/// Whether it is one.
#[inline]
pub fn is_greenlet(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: it looks at the type of an object that lives.
    FOUND.get(object.py()).is_some_and(|found| unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), found.kind) != 0 })
}

/// Let `greenlet` run until somebody switches back here, by this or by its `throw`.
pub fn switch(greenlet: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = greenlet.py();
    // SAFETY: it is one by `is_greenlet`; a new reference, or NULL and an exception.
    unsafe { Bound::from_owned_ptr_or_err(py, switch_to(py, greenlet.as_ptr())) }.map(drop)
}

/// The same without a frame of its own, which would be a part of each parked greenlet's stack.
///
/// # Safety
///
/// The object lives, and is a greenlet that this half was given by this interface or that `is_greenlet` has found.
#[inline(always)]
pub unsafe fn switch_to(py: Python<'_>, greenlet: *mut ffi::PyObject) -> *mut ffi::PyObject {
    match FOUND.get(py) {
        // SAFETY: as the caller promises; no arguments are NULL.
        Some(interface) => unsafe { (interface.switch)(greenlet, ptr::null_mut(), ptr::null_mut()) },
        None => ptr::null_mut(),
    }
}
