//! The ledger of lent locks for Python: on the memory of any object that lends it, such as `mmap.mmap`.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::AtomicU64;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::engine;

/// The words, and what holds their memory.
#[pyclass(frozen, module = "longshore._native")]
pub struct Ledger(PyBuffer<u8>);

impl Ledger {
    #[inline]
    fn words(&self) -> engine::Ledger<'_> {
        let buffer = &self.0;
        // SAFETY: the memory is writable, aligned and of that length, as `new` has checked, and lent for as long as the
        // buffer lives; whoever else has it, in this process or another, changes it by atomic steps only.
        engine::Ledger(unsafe {
            std::slice::from_raw_parts(
                buffer.buf_ptr().cast::<AtomicU64>(),
                buffer.len_bytes() / size_of::<AtomicU64>(),
            )
        })
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Ledger {
    #[new]
    fn new(memory: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(memory)?;
        let aligned = buffer.buf_ptr().cast::<AtomicU64>().is_aligned();
        if buffer.readonly() || !buffer.is_c_contiguous() || !aligned {
            return Err(PyValueError::new_err("a ledger is in writable memory, aligned to 8 bytes"));
        }
        Ok(Ledger(buffer))
    }

    fn next_fence(&self) -> u64 {
        self.words().next_fence()
    }

    fn lend(&self, slot: usize, client: u32, holder: u32) {
        self.words().lend(slot, client, holder);
    }

    fn take_back(&self, slot: usize) -> u32 {
        self.words().take_back(slot)
    }

    fn holder(&self, slot: usize) -> u32 {
        self.words().holder(slot)
    }

    fn take(&self, slot: usize, client: u32, holder: u32, socket: RawFd) -> i64 {
        let words = self.words();
        if !words.take(slot, client, holder) {
            0
        } else if connected(socket) {
            words.next_fence() as i64
        } else {
            -1
        }
    }

    fn give(&self, slot: usize, client: u32, holder: u32, socket: RawFd) -> i64 {
        match self.words().give(slot, client, holder) {
            false => 0,
            true if connected(socket) => 1,
            true => -1,
        }
    }
}

fn connected(socket: RawFd) -> bool {
    // SAFETY: the descriptor is borrowed for one call only, and -1, of a closed socket, is never given to the system.
    socket >= 0 && engine::is_connected(unsafe { BorrowedFd::borrow_raw(socket) })
}
