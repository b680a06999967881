//! The methods of a native reactor, as Python sees them; what each promises stands in `longshore.reactor.portable`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::cell::GilCell;
use super::reactor::{Core, NO_THREAD, Reactor, WATCHED, Watched, Work, here, monotonic, os_error};
use super::timer::Timer;
use crate::engine::{Engine, HISTOGRAM, Slab, Token};

#[longshore_shield::shielded]
#[pymethods]
impl Reactor {
    #[new]
    #[pyo3(signature = (clock = None))]
    fn new(clock: Option<Py<PyAny>>) -> PyResult<Self> {
        Ok(Reactor {
            core: GilCell::new(Core {
                engine: Engine::new().map_err(|error| os_error(&error))?,
                streams: Vec::new(),
                watched: Slab::default(),
                by_fd: HashMap::new(),
                calls: Slab::default(),
                posted: VecDeque::new(),
                again: VecDeque::new(),
                ready: VecDeque::new(),
                scratch: Vec::new(),
                due: VecDeque::new(),
                flush_soon: None,
                current: None,
                latest: None,
                rings_at: f64::INFINITY,
                framing: None,
                timeouts: None,
            }),
            clock,
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            turning: AtomicBool::new(false),
            thread: AtomicU64::new(NO_THREAD),
            busy_since: AtomicU64::new(f64::NAN.to_bits()),
            woken_at: AtomicU64::new(0.0_f64.to_bits()),
        })
    }

    /// Turn until `stop`, which may have come before; exceptions that leave a callback leave this too.
    fn run(slf: &Bound<'_, Self>) -> PyResult<()> {
        let me = slf.get();
        me.thread.store(here(), Relaxed);
        while !me.stopping.load(Relaxed) {
            let timeout = me.sleep(slf.py())?;
            Self::turn(slf, timeout)?;
        }
        me.stopping.store(false, Relaxed);
        Ok(())
    }

    /// Do what can be done without waiting, for a loop that watches `fileno()`.
    fn run_ready(slf: &Bound<'_, Self>) -> PyResult<Option<f64>> {
        let py = slf.py();
        let me = slf.get();
        me.thread.store(here(), Relaxed);
        Self::turn(slf, Some(0.0))?;
        if me.stopping.load(Relaxed) {
            return Ok(None);
        }
        let seconds = me.sleep(py)?;
        if me.clock.is_some() || seconds == Some(0.0) {
            return Ok(seconds);
        }
        // The kernel makes the descriptor readable when the next deadline has come, so the loop needs no timer.
        if let Some(seconds) = seconds {
            let now = monotonic();
            let when = now + seconds;
            me.with(py, |core| {
                if (when < core.rings_at || core.rings_at <= now)
                    && let Some(poller) = &core.engine.poller
                {
                    core.rings_at = when;
                    poller.ring_in(seconds);
                }
            });
        }
        Ok(None)
    }

    /// End `run` after this turn; from any thread.
    fn stop(&self, py: Python<'_>) {
        self.stopping.store(true, Relaxed);
        self.wake(py);
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Whether `stop` was called.
    #[getter]
    fn stopped(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// A descriptor that is readable when there is something to do.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.poller(py)?.fileno())
    }

    /// Its own descriptors, and all that it watches; none once it is closed.
    #[getter]
    fn descriptors(&self, py: Python<'_>) -> PyResult<HashSet<RawFd>> {
        let (mut found, watched): (HashSet<RawFd>, Vec<(RawFd, Py<PyAny>)>) = self.with(py, |core| {
            let watched = core
                .by_fd
                .iter()
                .filter_map(|(fd, token)| core.watched.get(*token).map(|watched| (*fd, watched.socket.clone_ref(py))));
            (core.engine.descriptors().into_iter().collect(), watched.collect())
        });
        for (fd, socket) in watched {
            // One that was closed without a word has lost its number, maybe to somebody else.
            if socket.bind(py).call_method0(pyo3::intern!(py, "fileno"))?.extract::<RawFd>()? == fd {
                found.insert(fd);
            }
        }
        Ok(found)
    }

    /// Send what was put off for the sake of coalescing.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::flush_all(slf, None)
    }

    /// Call it on the reactor's thread, soon; from any thread, also from a signal handler.
    #[pyo3(signature = (callback, *args))]
    fn post(&self, py: Python<'_>, callback: Py<PyAny>, args: Py<PyTuple>) {
        let refused = self.with(py, |core| {
            if core.engine.poller.is_none() {
                return Some((callback, args));
            }
            core.posted.push_back((callback, args));
            None
        });
        drop(refused);
        self.wake(py);
    }

    /// End the wait that goes on.
    pub fn wake(&self, py: Python<'_>) {
        if self.woken.swap(true, Relaxed) {
            return;
        }
        self.woken_at.store(monotonic().to_bits(), Relaxed);
        self.with(py, |core| {
            if let Some(poller) = &core.engine.poller {
                poller.wake();
            }
        });
    }

    /// Whether the caller is on the thread that turns this reactor.
    #[getter]
    pub fn on_thread(&self) -> bool {
        self.thread.load(Relaxed) == here()
    }

    /// The thread that turns this reactor; None before.
    #[getter]
    fn thread(&self) -> Option<u64> {
        Some(self.thread.load(Relaxed)).filter(|thread| *thread != NO_THREAD)
    }

    #[setter]
    fn set_thread(&self, thread: Option<u64>) {
        self.thread.store(thread.unwrap_or(NO_THREAD), Relaxed);
    }

    /// Since when something that was called has not come back; None if nothing is.
    #[getter]
    fn busy_since(&self) -> Option<f64> {
        self.busy()
    }

    /// Seconds for which something that was called has not come back, or a wake-up was not answered; from any thread.
    #[getter]
    fn blocked_for(&self) -> f64 {
        let unanswered = || self.woken.load(Relaxed).then(|| f64::from_bits(self.woken_at.load(Relaxed)));
        self.busy().or_else(unanswered).map_or(0.0, |since| monotonic() - since)
    }

    /// Whose handler is being called.
    #[getter]
    fn current(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.with(py, |core| core.current.as_ref().map(|current| current.clone_ref(py)))
    }

    #[setter]
    fn set_current(&self, py: Python<'_>, current: Option<Py<PyAny>>) {
        self.name_current(py, current);
    }

    /// Called when output was put off outside of a turn.
    #[getter]
    fn flush_soon(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.with(py, |core| core.flush_soon.as_ref().map(|soon| soon.clone_ref(py)))
    }

    #[setter]
    fn set_flush_soon(&self, py: Python<'_>, soon: Option<Py<PyAny>>) {
        let _before = self.with(py, |core| std::mem::replace(&mut core.flush_soon, soon));
    }

    /// Whether a turn is going on.
    #[getter]
    fn turning(&self) -> bool {
        self.turning.load(Relaxed)
    }

    /// Seconds on the reactor's clock.
    fn now(&self, py: Python<'_>) -> PyResult<f64> {
        self.time(py)
    }

    /// Call it at `when` on the reactor's clock.
    #[pyo3(signature = (when, callback, *args))]
    fn call_at(slf: &Bound<'_, Self>, when: f64, callback: Py<PyAny>, args: Py<PyTuple>) -> Timer {
        Self::arm(slf, when, callback, args)
    }

    /// Call it in `seconds`.
    #[pyo3(signature = (seconds, callback, *args))]
    fn call_later(slf: &Bound<'_, Self>, seconds: f64, callback: Py<PyAny>, args: Py<PyTuple>) -> PyResult<Timer> {
        let now = slf.get().time(slf.py())?;
        Ok(Self::arm(slf, now + seconds, callback, args))
    }

    /// Call it in the next turn, after everybody else had theirs.
    fn again(&self, py: Python<'_>, callback: Py<PyAny>) {
        self.later(py, Work::Call(callback));
    }

    /// Call `callback(events)` while the socket is ready for `events`; 0 watches no more.
    #[pyo3(signature = (sock, events, callback))]
    fn watch(&self, py: Python<'_>, sock: Py<PyAny>, events: u8, callback: Py<PyAny>) -> PyResult<()> {
        let fd: RawFd = sock.bind(py).call_method0(pyo3::intern!(py, "fileno"))?.extract()?;
        let outcome = self.with(py, |core| {
            let Some(poller) = core.engine.poller.clone() else { return (Ok(()), None, Some((sock, callback))) };
            let known = core
                .by_fd
                .get(&fd)
                .copied()
                .filter(|token| core.watched.get(*token).is_some_and(|watched| watched.socket.is(&sock)));
            match known {
                Some(token) if events == 0 => {
                    poller.forget(fd);
                    core.by_fd.remove(&fd);
                    (Ok(()), core.watched.remove(token), Some((sock, callback)))
                }
                Some(token) => {
                    let watched = core.watched.get_mut(token).map(|watched| {
                        watched.events = events;
                        std::mem::replace(&mut watched.callback, callback)
                    });
                    let done = poller.watch(fd, Token::from_u64(token.as_u64() | WATCHED), events, true);
                    (done, None, watched.map(|before| (sock, before)))
                }
                None if events == 0 => (Ok(()), None, Some((sock, callback))),
                None => {
                    let token = core.watched.insert(Watched { socket: sock, events, callback });
                    let done = poller.watch(fd, Token::from_u64(token.as_u64() | WATCHED), events, false);
                    // One that was closed without a word, and whose number this one has.
                    let stale = core.by_fd.insert(fd, token).and_then(|stale| core.watched.remove(stale));
                    (done, stale, None)
                }
            }
        });
        // The objects of a watch that has ended are dropped here, where nothing is borrowed.
        outcome.0.map_err(|error| os_error(&error))
    }

    /// What was counted: connections, bytes, messages, what ended them, and the latency histogram.
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = self.with(py, |core| core.engine.counters.clone());
        let found = PyDict::new(py);
        for (name, value) in [
            ("opened", counters.opened),
            ("closed", counters.closed),
            ("received", counters.received),
            ("sent", counters.sent),
            ("messages", counters.messages),
            ("resets", counters.resets),
            ("failures", counters.failures),
            ("malformed", counters.malformed),
            ("overdue", counters.overdue),
            ("taken", counters.taken),
        ] {
            found.set_item(name, value)?;
        }
        let latency: [u64; HISTOGRAM] = counters.latency;
        found.set_item("latency", latency.to_vec())?;
        Ok(found)
    }

    /// Give everything back; what was posted and not yet called is forgotten.
    fn close(&self, py: Python<'_>) {
        if self.closed.swap(true, Relaxed) {
            return;
        }
        // Taken out under the borrow, dropped behind it: their ends may run Python.
        let _left = self.with(py, |core| {
            core.engine.poller = None;
            core.engine.dirty.clear();
            core.ready.clear();
            core.due.clear();
            core.by_fd.clear();
            (
                std::mem::take(&mut core.watched),
                std::mem::take(&mut core.calls),
                std::mem::take(&mut core.posted),
                std::mem::take(&mut core.again),
                std::mem::take(&mut core.streams),
                core.flush_soon.take(),
                core.current.take(),
            )
        });
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.core
            .visit(|core| {
                for stream in core.streams.iter().flatten() {
                    visit.call(stream)?;
                }
                for (callback, args) in &core.posted {
                    visit.call(callback)?;
                    visit.call(args)?;
                }
                for work in &core.again {
                    match work {
                        Work::Call(callback) => visit.call(callback)?,
                        Work::Resume(stream) | Work::Rested(stream) => visit.call(stream)?,
                    }
                }
                for watched in core.watched.values() {
                    visit.call(&watched.socket)?;
                    visit.call(&watched.callback)?;
                }
                for call in core.calls.values() {
                    visit.call(&call.callback)?;
                    visit.call(&call.args)?;
                }
                visit.call(&core.flush_soon)?;
                visit.call(&core.current)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        // Shielded, so it gives a result, which here is for nobody.
        let _closed = self.close(py);
    }
}
