//! Datagrams for Python: taken by the batch, handed to a handler or an owner, and answered by the batch.
//!
//! What each method promises stands in `longshore.reactor.datagrams`, which does the same one by one.  A batch is taken
//! out of its cell while it is handed over, so nothing is borrowed when Python runs.  Of whoever sends often, the
//! address, and the object that stands for him, are made once.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::cell::GilCell;
use super::reactor::{BUDGET, Reactor, monotonic};
use super::sender::{Origin, Sender};
use super::words;
use crate::engine::{Answer, DATAGRAMS, Inbox, Outbox};

/// Datagrams that one socket may give before the others get their turn.
const BURST: usize = 4 * DATAGRAMS;
/// Senders that are remembered, so that many of them, or forged ones, take no more memory than this.
const SENDERS: usize = 4096;
/// Answers, and bytes of them, that are put off at most.
const ANSWERS: usize = 256;
const BYTES: usize = 1 << 20;

/// An answer that is put off until the batch ends.
struct Reply {
    data: Py<PyBytes>,
    sender: Arc<Sender>,
}

/// What is held of Python, and what changes.
#[derive(Default)]
struct Own {
    socket: Option<Py<PyAny>>,
    owner: Option<Py<PyAny>>,
    /// Whom to hand each datagram to, in place of the owner.
    call: Option<Py<PyAny>>,
    /// Whether the owner takes all of a peer's that have come at once, and not only those in a row.
    batches: bool,
    senders: HashMap<Box<[u8]>, Arc<Sender>>,
    inbox: Option<Box<Inbox>>,
    outbox: Option<Box<Outbox>>,
    replies: Vec<Reply>,
    bytes: usize,
    running: bool,
    /// Whether a batch is being handed over, so that answers wait for its end.
    gathering: bool,
}

/// One datagram socket on a native reactor; every method but `send` belongs to the reactor's thread.
#[pyclass(frozen, module = "longshore._native")]
pub struct Datagrams {
    reactor: Py<Reactor>,
    own: GilCell<Own>,
    count: AtomicU64,
    segments: bool,
    /// Whether `keep` was called for the sender whose datagram is being handled.
    kept: AtomicBool,
}

/// A handler of single datagrams, and who is asked about what is unusual.
struct Callee<'py> {
    call: Bound<'py, PyAny>,
    owner: Bound<'py, PyAny>,
}

impl<'py> Callee<'py> {
    #[inline]
    fn handle(&self, data: &Bound<'py, PyBytes>, peer: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let mut args = [ptr::null_mut(), data.as_ptr(), peer.as_ptr()];
        // SAFETY: the arguments live in bound references during the call, and the place in front of them is free for
        // the callee, as the flag promises; what it returns is a new reference, or null with an error set.
        unsafe {
            let result = ffi::PyObject_Vectorcall(
                self.call.as_ptr(),
                args.as_mut_ptr().add(1),
                2 | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                ptr::null_mut(),
            );
            Bound::from_owned_ptr_or_err(data.py(), result)
        }
    }
}

impl Datagrams {
    fn owner<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.own.with(py, |own| own.owner.as_ref().map(|owner| owner.bind(py).clone()))
    }

    /// The descriptor, asked anew: the socket is its owner's to close, and its number may be another's by then.
    fn fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        let socket = self.own.with(py, |own| own.socket.as_ref().map(|socket| socket.bind(py).clone()));
        let fd = match socket {
            Some(socket) => socket.call_method0(intern!(py, "fileno"))?.extract()?,
            None => -1,
        };
        if fd < 0 { Err(words::refused(py, &std::io::Error::from_raw_os_error(libc::EBADF))) } else { Ok(fd) }
    }

    /// Who sent a datagram: remembered from an earlier one, or new.
    fn sender(&self, py: Python<'_>, origin: crate::engine::Origin) -> PyResult<Arc<Sender>> {
        if let Some(known) = self.own.with(py, |own| own.senders.get(origin.key()).cloned()) {
            return Ok(known);
        }
        let key = Box::from(origin.key());
        let made = Arc::new(Sender::new(py, origin)?);
        let kept = made.clone();
        // Dropped behind the borrow, as the ends of peers may run Python.
        let _before = self.own.with(py, |own| {
            let full = own.senders.len() >= SENDERS;
            let before = if full { std::mem::take(&mut own.senders) } else { HashMap::new() };
            (before, own.senders.insert(key, kept))
        });
        Ok(made)
    }

    fn burst(slf: &Bound<'_, Self>, limit: usize) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let (inbox, outer) = me.own.with(py, |own| (own.inbox.take(), std::mem::replace(&mut own.gathering, true)));
        let mut inbox = inbox.unwrap_or_default();
        let taken = me.take(py, &mut inbox, limit);
        me.own.with(py, |own| {
            own.inbox = Some(inbox);
            own.gathering = outer;
        });
        let sent = me.flush(py);
        taken.and(sent)
    }

    /// Take and hand over batch after batch, while there are any and it is our turn.
    fn take(&self, py: Python<'_>, inbox: &mut Inbox, limit: usize) -> PyResult<()> {
        let started = monotonic();
        let mut left = limit;
        while left > 0 && self.own.with(py, |own| own.running) {
            let fd = self.fd(py)?;
            let count = match inbox.receive(fd) {
                Ok(count) => count,
                Err(error) => {
                    let nothing =
                        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted);
                    let owner = self.owner(py).filter(|_| !nothing);
                    return match owner {
                        Some(owner) => {
                            let error = words::refused(py, &error).into_value(py);
                            owner.call_method1(intern!(py, "receive_failed"), (error,)).map(drop)
                        }
                        None => Ok(()),
                    };
                }
            };
            self.count.fetch_add(count as u64, Relaxed);
            self.hand_over(py, inbox, count)?;
            self.flush(py)?;
            left = left.saturating_sub(count);
            if count < DATAGRAMS || (limit <= BURST && monotonic() - started > BUDGET) {
                break;
            }
        }
        Ok(())
    }

    fn hand_over(&self, py: Python<'_>, inbox: &Inbox, count: usize) -> PyResult<()> {
        let (owner, call, batches) = self.own.with(py, |own| {
            let bound = |object: &Option<Py<PyAny>>| object.as_ref().map(|object| object.bind(py).clone());
            (bound(&own.owner), bound(&own.call), own.batches)
        });
        let Some(owner) = owner else { return Ok(()) };
        let callee = call.map(|call| Callee { call, owner: owner.clone() });
        let mut last: Option<Arc<Sender>> = None;
        let mut groups: Vec<(Arc<Sender>, Vec<Bound<'_, PyBytes>>)> = Vec::new();
        for index in 0..count {
            let Some(datagram) = inbox.get(index) else { break };
            let sender = match last.take().filter(|last| *last.origin() == datagram.origin) {
                Some(same) => same,
                None => self.sender(py, datagram.origin)?,
            };
            if datagram.truncated {
                let told = (datagram.data.len(), sender.address(py));
                owner.call_method1(intern!(py, "truncated"), told)?;
            } else {
                let data = PyBytes::new(py, datagram.data);
                match &callee {
                    Some(callee) => self.handle(py, callee, &sender, data)?,
                    None => {
                        let same = |group: &&mut (Arc<Sender>, _)| Arc::ptr_eq(&group.0, &sender);
                        let mut wanted = groups.iter_mut();
                        let group = if batches { wanted.find(same) } else { wanted.next_back().filter(same) };
                        match group {
                            Some((_, list)) => list.push(data),
                            None => groups.push((sender.clone(), vec![data])),
                        }
                    }
                }
            }
            last = Some(sender);
        }
        for (sender, list) in groups {
            let args = (PyList::new(py, list)?, sender.address(py), sender.info(py)?);
            owner.call_method1(intern!(py, "received"), args)?;
        }
        Ok(())
    }

    /// Hand one datagram to the handler, and put its answer off.
    #[inline]
    fn handle(
        &self,
        py: Python<'_>,
        callee: &Callee<'_>,
        sender: &Arc<Sender>,
        data: Bound<'_, PyBytes>,
    ) -> PyResult<()> {
        let peer = match sender.take_peer(py) {
            Some(peer) => peer.into_bound(py),
            None => callee.owner.call_method1(intern!(py, "peer"), (sender.address(py), sender.info(py)?))?,
        };
        match callee.handle(&data, &peer) {
            Ok(answer) if answer.is_none() => {}
            Ok(answer) => match answer.cast_into_exact::<PyBytes>() {
                Ok(bytes) if !sender.is_unnamed() => self.put_off(py, bytes.unbind(), sender.clone())?,
                other => {
                    let answer = other.map_or_else(|error| error.into_inner(), Bound::into_any);
                    if let Err(error) = peer.call_method1(intern!(py, "send"), (answer,)) {
                        callee.failed(error, &peer, &data)?;
                    }
                }
            },
            Err(error) => callee.failed(error, &peer, &data)?,
        }
        // SAFETY: the object lives, as `peer` holds it.
        let alone = unsafe { ffi::Py_REFCNT(peer.as_ptr()) } == 1;
        if !self.kept.swap(false, Relaxed) && alone {
            // Nobody has kept it, or left something in it, so the next datagram cannot tell it from a new one.
            sender.give_peer(py, peer.unbind());
        }
        Ok(())
    }

    fn put_off(&self, py: Python<'_>, data: Py<PyBytes>, sender: Arc<Sender>) -> PyResult<()> {
        let full = self.own.with(py, |own| {
            own.bytes += data.as_bytes(py).len();
            own.replies.push(Reply { data, sender });
            own.replies.len() >= ANSWERS || own.bytes >= BYTES
        });
        if full { self.flush(py) } else { Ok(()) }
    }

    /// Send what was put off, and tell of what the system refuses.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let (replies, outbox) = self.own.with(py, |own| {
            own.bytes = 0;
            (std::mem::take(&mut own.replies), own.outbox.take())
        });
        let mut refused = Vec::new();
        if !replies.is_empty() {
            let mut outbox = outbox.unwrap_or_else(|| Box::new(Outbox::new(self.segments)));
            match self.fd(py) {
                Ok(fd) => {
                    let answers: Vec<_> = replies
                        .iter()
                        .map(|reply| Answer { data: reply.data.as_bytes(py), origin: reply.sender.origin() })
                        .collect();
                    outbox.send(fd, &answers, |index, error| refused.push((index, words::refused(py, &error))));
                }
                Err(error) => refused.extend((0..replies.len()).map(|index| (index, error.clone_ref(py)))),
            }
            self.own.with(py, |own| own.outbox = Some(outbox));
        } else if let Some(outbox) = outbox {
            self.own.with(py, |own| own.outbox = Some(outbox));
        }
        for (index, error) in refused {
            if let Some(owner) = self.owner(py) {
                let reply = &replies[index];
                let told = (reply.data.as_bytes(py).len(), reply.sender.address(py), error.into_value(py));
                owner.call_method1(intern!(py, "send_failed"), told)?;
            }
        }
        // The room for replies is used again.
        let mut room = replies;
        room.clear();
        self.own.with(py, |own| {
            if own.replies.is_empty() {
                std::mem::swap(&mut own.replies, &mut room);
            }
        });
        Ok(())
    }

    fn watch(slf: &Bound<'_, Self>, events: u8) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let socket = me.own.with(py, |own| own.socket.as_ref().map(|socket| socket.bind(py).clone()));
        let callback = slf.getattr(intern!(py, "_ready"))?;
        me.reactor.bind(py).call_method1(intern!(py, "watch"), (socket, events, callback)).map(drop)
    }
}

impl<'py> Callee<'py> {
    /// What left the handler is the owner's business, unless it ends the thread's.
    #[cold]
    fn failed(&self, error: PyErr, peer: &Bound<'py, PyAny>, data: &Bound<'py, PyBytes>) -> PyResult<()> {
        let py = peer.py();
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        let told = (peer, error.into_value(py), data.as_bytes().len());
        self.owner.call_method1(intern!(py, "failed"), told).map(drop)
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Datagrams {
    #[new]
    fn new(reactor: Py<Reactor>, sock: Py<PyAny>, owner: Py<PyAny>, segments: bool) -> Self {
        Datagrams {
            reactor,
            own: GilCell::new(Own { socket: Some(sock), owner: Some(owner), ..Own::default() }),
            count: AtomicU64::new(0),
            segments,
            kept: AtomicBool::new(false),
        }
    }

    /// The socket; whoever reads it takes from the server.
    #[getter]
    fn socket(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.own.with(py, |own| own.socket.as_ref().map(|socket| socket.clone_ref(py)))
    }

    /// Datagrams that have come.
    #[getter]
    fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Hand each datagram to `call(data, peer)` from now on, or all of a peer's at once to the owner.
    #[pyo3(signature = (call = None, *, batches = false))]
    fn dispatch(&self, py: Python<'_>, call: Option<Py<PyAny>>, batches: bool) {
        let _before = self.own.with(py, |own| {
            own.batches = batches;
            std::mem::replace(&mut own.call, call)
        });
    }

    /// Do not give the peer again for whose datagram the handler runs: something was left in it.
    fn keep(&self) {
        self.kept.store(true, Relaxed);
    }

    /// Read nothing until `resume`.
    fn pause(slf: &Bound<'_, Self>) -> PyResult<()> {
        let was = slf.get().own.with(slf.py(), |own| std::mem::replace(&mut own.running, false));
        if was { Self::watch(slf, 0) } else { Ok(()) }
    }

    /// Read again.
    fn resume(slf: &Bound<'_, Self>) -> PyResult<()> {
        let was = slf.get().own.with(slf.py(), |own| std::mem::replace(&mut own.running, true));
        if was { Ok(()) } else { Self::watch(slf, 1) }
    }

    /// Read all that is in the kernel's buffer now.
    fn receive_queued(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::burst(slf, 1 << 16)
    }

    fn _ready(slf: &Bound<'_, Self>, _events: u8) -> PyResult<()> {
        Self::burst(slf, BURST)
    }

    /// Send one datagram, from any thread; while a batch is handed over, behind the answers that were put off.
    #[pyo3(signature = (data, address, info = None))]
    fn send(
        slf: &Bound<'_, Self>,
        data: Bound<'_, PyAny>,
        address: Bound<'_, PyAny>,
        info: Option<Bound<'_, Origin>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let Some(info) = info else {
            let socket = slf.getattr(intern!(py, "socket"))?;
            return if address.is_truthy()? {
                socket.call_method1(intern!(py, "sendto"), (data, address)).map(drop)
            } else {
                socket.call_method1(intern!(py, "send"), (data,)).map(drop)
            };
        };
        let bytes = match data.cast_into_exact::<PyBytes>() {
            Ok(bytes) => bytes,
            Err(error) => PyBytes::new(py, &error.into_inner().extract::<Vec<u8>>()?),
        };
        let sender = info.get().sender();
        if me.reactor.get().on_thread() && me.own.with(py, |own| own.gathering) {
            return me.put_off(py, bytes.unbind(), sender.clone());
        }
        let answer = [Answer { data: bytes.as_bytes(), origin: sender.origin() }];
        let mut refused = None;
        Outbox::new(false).send(me.fd(py)?, &answer, |_, error| refused = Some(error));
        refused.map_or(Ok(()), |error| Err(words::refused(py, &error)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.reactor)?;
        self.own
            .visit(|own| {
                visit.call(&own.socket)?;
                visit.call(&own.owner)?;
                visit.call(&own.call)?;
                own.senders.values().try_for_each(|sender| sender.visit(&visit))
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let _all = self.own.with(py, std::mem::take);
    }
}
