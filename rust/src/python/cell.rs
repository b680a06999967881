//! State that Python's lock protects.
//!
//! The one rule of this half: what runs inside of `with` runs no Python, neither a call nor the end of an object.
//! Then a borrow never meets another one, and under the lock it costs two instructions.

use std::cell::UnsafeCell;

use pyo3::prelude::*;

/// A value that is only reached by whoever is attached to the interpreter, and by one at a time.
#[derive(Debug)]
pub struct GilCell<T> {
    value: UnsafeCell<T>,
    borrowed: UnsafeCell<bool>,
    /// Where there is no global lock, one of its own.
    #[cfg(Py_GIL_DISABLED)]
    lock: std::sync::Mutex<()>,
}

// SAFETY: `with` needs the interpreter's lock, or takes the cell's own where there is none, so no two threads are
// inside at once.
unsafe impl<T: Send> Sync for GilCell<T> {}

impl<T> GilCell<T> {
    /// A cell with `value` in it.
    pub fn new(value: T) -> Self {
        GilCell {
            value: UnsafeCell::new(value),
            borrowed: UnsafeCell::new(false),
            #[cfg(Py_GIL_DISABLED)]
            lock: std::sync::Mutex::new(()),
        }
    }

    /// Reach the value; `call` runs no Python.
    #[inline]
    pub fn with<R>(&self, _py: Python<'_>, call: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(Py_GIL_DISABLED)]
        let _guard = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the interpreter's lock is held, or our own; nobody else is inside, as the flag below proves for
        // this thread too.
        let borrowed = unsafe { &mut *self.borrowed.get() };
        assert!(!*borrowed, "the rule was broken: Python has run while the engine was borrowed");
        *borrowed = true;
        let _reset = Reset(borrowed);
        // SAFETY: as above.
        call(unsafe { &mut *self.value.get() })
    }

    /// Look at the value for the garbage collector, unless it is borrowed.
    pub fn visit<R>(&self, call: impl FnOnce(&T) -> R) -> Option<R> {
        // SAFETY: the collector runs while no other Python does, and only reads.
        let borrowed = unsafe { *self.borrowed.get() };
        // SAFETY: as above.
        (!borrowed).then(|| call(unsafe { &*self.value.get() }))
    }
}

/// Gives the borrow back, also where a panic passes.
struct Reset<'a>(&'a mut bool);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        *self.0 = false;
    }
}
