//! The ledger of lent locks for Python: on the memory of any object that lends it, such as `mmap.mmap`.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::engine;

/// The words, and what holds their memory.
#[pyclass(frozen, module = "longshore._native")]
pub struct Ledger {
    memory: PyBuffer<u8>,
    /// Whether this process, a child of the one that had it, may step no more.
    closed: AtomicBool,
}

impl Ledger {
    #[inline]
    fn words(&self) -> engine::Ledger<'_> {
        let buffer = &self.memory;
        // SAFETY: the memory is writable, aligned and of that length, as `new` has checked, and lent for as long as the
        // buffer lives; whoever else has it, in this process or another, changes it by atomic steps only.
        engine::Ledger(unsafe {
            std::slice::from_raw_parts(
                buffer.buf_ptr().cast::<AtomicU64>(),
                buffer.len_bytes() / size_of::<AtomicU64>(),
            )
        })
    }

    fn stepped(&self, slot: usize, client: u32, before: u32, after: u32, socket: RawFd) -> i64 {
        // A socket that is closed is of one that has left, or of a parent, as is a ledger: nothing is lent to whoever has it.
        if socket < 0 || self.closed.load(SeqCst) {
            return -1;
        }
        match self.words().step(slot, client, before, after) {
            false => 0,
            true if connected(socket) => 1,
            true => -1,
        }
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
        Ok(Ledger { memory: buffer, closed: AtomicBool::new(false) })
    }

    fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    fn next_fence(&self) -> u64 {
        self.words().next_fence()
    }

    fn lend(&self, slot: usize, client: u32, state: u32) {
        self.words().lend(slot, client, state);
    }

    fn take_back(&self, slot: usize) -> u32 {
        self.words().take_back(slot)
    }

    fn state(&self, slot: usize) -> u32 {
        self.words().state(slot)
    }

    fn take(&self, slot: usize, client: u32, holder: u32, socket: RawFd) -> i64 {
        match self.stepped(slot, client, 0, holder, socket) {
            1 => self.words().next_fence() as i64,
            other => other,
        }
    }

    fn step(&self, slot: usize, client: u32, before: u32, after: u32, socket: RawFd) -> i64 {
        self.stepped(slot, client, before, after, socket)
    }
}

fn connected(socket: RawFd) -> bool {
    // SAFETY: the descriptor is borrowed for one call only, and is not -1, of a closed socket, as `stepped` has seen.
    engine::is_connected(unsafe { BorrowedFd::borrow_raw(socket) })
}
