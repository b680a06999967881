//! The reactor's turns: what is ready, what is due, what was posted, what was left over, in this order.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pyo3::exceptions::PyOSError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rustix::time::{ClockId, clock_gettime};

use super::cell::GilCell;
use super::shielded;
use super::stream::Stream;
use super::timer::Timer;
use super::words;
use crate::engine::{Engine, Framing, HISTOGRAM, Poller, Slab, Timeouts, Token};

/// A bit that no token of a stream has: a slab would need two thousand million generations.
const WATCHED: u64 = 1 << 63;
/// Seconds that sources get before timers and other threads have their turn.
const BUDGET: f64 = 0.001;
/// Where no thread turns the reactor.
const NO_THREAD: u64 = u64::MAX;

/// A source that is none of the engine's: a socket, and whom to call.
struct Watched {
    socket: Py<PyAny>,
    events: u8,
    callback: Py<PyAny>,
}

/// A call that is due at some time.
pub struct Call {
    callback: Py<PyAny>,
    args: Py<PyTuple>,
    wheel: Token,
}

/// What is left over for the next turn.
pub enum Work {
    /// Call this.
    Call(Py<PyAny>),
    /// Go on with the messages of this stream.
    Resume(Py<Stream>),
}

/// Everything that a turn changes.
pub struct Core {
    pub engine: Engine<Token>,
    /// The objects of the engine's streams, by the index of their token.
    streams: Vec<Option<Py<Stream>>>,
    watched: Slab<Watched>,
    by_fd: HashMap<RawFd, Token>,
    calls: Slab<Call>,
    posted: VecDeque<(Py<PyAny>, Py<PyTuple>)>,
    pub again: VecDeque<Work>,
    /// What the kernel has told of and had no turn yet.
    ready: VecDeque<(Token, u8)>,
    scratch: Vec<(Token, u8)>,
    /// What is due and was not called yet.
    due: VecDeque<Result<Token, Token>>,
    flush_soon: Option<Py<PyAny>>,
    /// Whose handler is being called.
    current: Option<Py<PyAny>>,
    /// When the kernel's timer makes the descriptor readable.
    rings_at: f64,
    framing: Option<(Py<PyAny>, Option<Arc<Framing>>)>,
    timeouts: Option<(Py<PyAny>, Arc<Timeouts>)>,
}

/// The native half of a reactor: sources, timers and streams; see `longshore.reactor`.
#[pyclass(frozen, subclass, module = "longshore._native")]
pub struct Reactor {
    pub core: GilCell<Core>,
    clock: Option<Py<PyAny>>,
    stopping: AtomicBool,
    closed: AtomicBool,
    woken: AtomicBool,
    turning: AtomicBool,
    thread: AtomicU64,
    busy_since: AtomicU64,
}

/// The clock of `time.monotonic`.
#[inline]
pub fn monotonic() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

fn os_error(error: &io::Error) -> PyErr {
    PyOSError::new_err((error.raw_os_error().unwrap_or(0), error.to_string()))
}

#[inline]
fn here() -> u64 {
    // SAFETY: it needs nothing.
    unsafe { pyo3::ffi::PyThread_get_thread_ident() as u64 }
}

impl Reactor {
    /// The reactor's time.
    #[inline]
    pub fn time(&self, py: Python<'_>) -> PyResult<f64> {
        match &self.clock {
            None => Ok(monotonic()),
            Some(clock) => clock.bind(py).call_method0(pyo3::intern!(py, "now"))?.extract(),
        }
    }

    /// Reach the engine; `call` runs no Python.
    #[inline]
    pub fn with<R>(&self, py: Python<'_>, call: impl FnOnce(&mut Core) -> R) -> R {
        self.core.with(py, call)
    }

    pub fn forget_call(&self, py: Python<'_>, token: Token) -> Option<Call> {
        self.with(py, |core| {
            let call = core.calls.remove(token)?;
            core.engine.wheel.cancel(call.wheel);
            Some(call)
        })
    }

    /// Tell the poller of a new stream.
    pub fn adopt(&self, py: Python<'_>, token: Token, stream: Py<Stream>) {
        self.with(py, |core| {
            let index = token.index();
            if core.streams.len() <= index {
                core.streams.resize_with(index + 1, || None);
            }
            core.streams[index] = Some(stream);
        });
    }

    /// A stream is gone; it is returned so that it is dropped where nothing is borrowed.
    pub fn let_go(&self, py: Python<'_>, token: Token) -> Option<Py<Stream>> {
        self.with(py, |core| core.streams.get_mut(token.index()).and_then(Option::take))
    }

    /// Do it in the next turn, after everybody else had theirs.
    pub fn later(&self, py: Python<'_>, work: Work) {
        self.with(py, |core| core.again.push_back(work));
        if !self.turning.load(Relaxed) {
            self.wake(py);
        }
    }

    /// Name whose handler is called from now on.
    #[inline]
    pub fn name_current(&self, py: Python<'_>, current: Option<Py<PyAny>>) {
        let _before = self.with(py, |core| std::mem::replace(&mut core.current, current));
    }

    /// Output was put off: have somebody flush it, if no turn does.
    pub fn flush_is_due(&self, py: Python<'_>) -> PyResult<()> {
        if self.turning.load(Relaxed) {
            return Ok(());
        }
        let soon = self.with(py, |core| {
            (core.engine.dirty.len() == 1).then(|| core.flush_soon.as_ref().map(|soon| soon.clone_ref(py)))
        });
        match soon.flatten() {
            Some(soon) => soon.bind(py).call0().map(drop),
            None => Ok(()),
        }
    }

    /// The native twin of a framing; `None` if it has none.
    pub fn framing(&self, py: Python<'_>, framing: &Bound<'_, PyAny>) -> PyResult<Option<Arc<Framing>>> {
        let known = self.with(py, |core| match &core.framing {
            Some((object, native)) if object.is(framing) => Some(native.clone()),
            _ => None,
        });
        if let Some(native) = known {
            return Ok(native);
        }
        let made = words::TRANSLATE.get(py)?.call1((framing,))?;
        let native = if made.is_none() {
            None
        } else {
            Some(made.cast::<super::input::Framing>().map_err(PyErr::from)?.get().native())
        };
        let fresh = Some((framing.clone().unbind(), native.clone()));
        let _before = self.with(py, |core| std::mem::replace(&mut core.framing, fresh));
        Ok(native)
    }

    /// The native twin of a `Timeouts`.
    pub fn timeouts(&self, py: Python<'_>, timeouts: &Bound<'_, PyAny>) -> PyResult<Arc<Timeouts>> {
        let known = self.with(py, |core| match &core.timeouts {
            Some((object, native)) if object.is(timeouts) => Some(native.clone()),
            _ => None,
        });
        if let Some(native) = known {
            return Ok(native);
        }
        let seconds = |name: &str, none: f64| -> PyResult<f64> {
            Ok(timeouts.getattr(name)?.extract::<Option<f64>>()?.unwrap_or(none))
        };
        let native = Arc::new(Timeouts {
            first_byte: seconds("first_byte", f64::INFINITY)?,
            idle: seconds("idle", f64::INFINITY)?,
            write: seconds("write", f64::INFINITY)?,
            lifetime: seconds("lifetime", f64::INFINITY)?,
            linger: seconds("linger", f64::INFINITY)?,
            min_rate: seconds("min_rate", 0.0)?,
        });
        let fresh = Some((timeouts.clone().unbind(), native.clone()));
        let _before = self.with(py, |core| std::mem::replace(&mut core.timeouts, fresh));
        Ok(native)
    }

    fn poller(&self, py: Python<'_>) -> PyResult<Arc<Poller>> {
        let poller = self.with(py, |core| core.engine.poller.clone());
        poller.ok_or_else(|| PyOSError::new_err("the reactor is closed"))
    }

    /// Seconds until something is due; `None`: for ever.
    fn sleep(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        let (work, next) = self.with(py, |core| {
            let work =
                !(core.again.is_empty() && core.posted.is_empty() && core.ready.is_empty() && core.due.is_empty());
            (work, core.engine.wheel.next())
        });
        if work {
            return Ok(Some(0.0));
        }
        match (next, &self.clock) {
            (None, _) => Ok(None),
            (Some(next), None) => Ok(Some((next - monotonic()).max(0.0))),
            (Some(next), Some(clock)) => clock.bind(py).call_method1("wait_for", (next,))?.extract(),
        }
    }

    fn turn(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        me.busy_since.store(f64::NAN.to_bits(), Relaxed);
        let poller = me.poller(py)?;
        let (mut fresh, waiting) = me.with(py, |core| (std::mem::take(&mut core.scratch), core.ready.len()));
        if waiting == 0 {
            let woken = if timeout == Some(0.0) {
                poller.wait(&mut fresh, timeout)
            } else {
                py.detach(|| poller.wait(&mut fresh, timeout))
            };
            match woken {
                Ok(false) => {}
                Ok(true) => {
                    poller.awake();
                    // After reading, not before: whoever finds this still set has posted already, and this very
                    // turn calls what was posted.
                    me.woken.store(false, Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) => return Err(os_error(&error)),
            }
        }
        let started = monotonic();
        me.busy_since.store(started.to_bits(), Relaxed);
        me.turning.store(true, Relaxed);
        me.with(py, |core| {
            core.ready.extend(fresh.drain(..));
            core.scratch = fresh;
        });
        let served = shielded(py, || Self::serve(slf, started));
        me.turning.store(false, Relaxed);
        let flushed = shielded(py, || Self::flush_all(slf));
        me.busy_since.store(f64::NAN.to_bits(), Relaxed);
        me.name_current(py, None);
        served.and(flushed)
    }

    fn serve(slf: &Bound<'_, Self>, started: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        while let Some((token, events)) = me.with(py, |core| core.ready.pop_front()) {
            Self::ready(slf, token, events)?;
            Self::flush_all(slf)?;
            if monotonic() - started > BUDGET {
                break;
            }
        }
        let has_timers = me.with(py, |core| !core.engine.wheel.is_empty() || !core.due.is_empty());
        if has_timers {
            let now = me.time(py)?;
            me.with(py, |core| {
                let due = core.engine.wheel.take_due(now);
                core.due.extend(due);
            });
            while let Some(due) = me.with(py, |core| core.due.pop_front()) {
                Self::fire(slf, due, now)?;
            }
        }
        let posted = me.with(py, |core| core.posted.len());
        for _ in 0..posted {
            let Some((callback, args)) = me.with(py, |core| core.posted.pop_front()) else { break };
            callback.bind(py).call1(args.bind(py).clone())?;
        }
        let again = me.with(py, |core| core.again.len());
        for _ in 0..again {
            match me.with(py, |core| core.again.pop_front()) {
                Some(Work::Call(callback)) => drop(callback.bind(py).call0()?),
                Some(Work::Resume(stream)) => Stream::resume(stream.bind(py))?,
                None => break,
            }
            Self::flush_all(slf)?;
        }
        Ok(())
    }

    #[inline]
    fn ready(slf: &Bound<'_, Self>, token: Token, events: u8) -> PyResult<()> {
        enum Found {
            Stream(Py<Stream>, u8),
            Watched(Py<PyAny>, u8),
        }
        let py = slf.py();
        // An earlier callback of this turn may have closed this one, or changed what it waits for.
        let found = slf.get().with(py, |core| {
            if token.as_u64() & WATCHED == 0 {
                let events = core.engine.wanted(token, events);
                let stream = core.streams.get(token.index())?.as_ref()?;
                return (events != 0).then(|| Found::Stream(stream.clone_ref(py), events));
            }
            let watched = core.watched.get(Token::from_u64(token.as_u64() & !WATCHED))?;
            let events = events & watched.events;
            (events != 0).then(|| Found::Watched(watched.callback.clone_ref(py), events))
        });
        match found {
            Some(Found::Stream(stream, events)) => Stream::ready(stream.bind(py), events),
            Some(Found::Watched(callback, events)) => callback.bind(py).call1((events,)).map(drop),
            None => Ok(()),
        }
    }

    fn fire(slf: &Bound<'_, Self>, due: Result<Token, Token>, now: f64) -> PyResult<()> {
        let py = slf.py();
        match due {
            Ok(token) => {
                let stream = slf.get().with(py, |core| {
                    core.engine.stream(token)?;
                    core.streams.get(token.index())?.as_ref().map(|stream| stream.clone_ref(py))
                });
                stream.map_or(Ok(()), |stream| Stream::deadline(stream.bind(py), now))
            }
            Err(token) => match slf.get().with(py, |core| core.calls.remove(token)) {
                Some(call) => call.callback.bind(py).call1(call.args.bind(py).clone()).map(drop),
                None => Ok(()),
            },
        }
    }

    #[inline]
    fn flush_all(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        while let Some(token) = me.with(py, |core| core.engine.dirty.pop_front()) {
            let now = me.time(py)?;
            let told = me.with(py, |core| {
                let effects = core.engine.flush(token, now);
                if effects.is_empty() {
                    return None;
                }
                let stream = core.streams.get(token.index())?.as_ref()?;
                Some((stream.clone_ref(py), effects))
            });
            if let Some((stream, effects)) = told {
                Stream::apply(stream.bind(py), effects)?;
            }
        }
        Ok(())
    }
}

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
        })
    }

    /// Turn until `stop`; exceptions that leave a callback leave this too.
    fn run(slf: &Bound<'_, Self>) -> PyResult<()> {
        let me = slf.get();
        me.thread.store(here(), Relaxed);
        while !me.stopping.load(Relaxed) {
            let timeout = me.sleep(slf.py())?;
            Self::turn(slf, timeout)?;
        }
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

    /// Send what was put off for the sake of coalescing.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        shielded(slf.py(), || Self::flush_all(slf))
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
    fn wake(&self, py: Python<'_>) {
        if self.woken.swap(true, Relaxed) {
            return;
        }
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
        Some(f64::from_bits(self.busy_since.load(Relaxed))).filter(|since| !since.is_nan())
    }

    /// Seconds for which something that was called has not come back; from any thread.
    #[getter]
    fn blocked_for(&self) -> f64 {
        self.busy_since().map_or(0.0, |since| monotonic() - since)
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
        let py = slf.py();
        let me = slf.get();
        let token = me.with(py, |core| {
            // Known by its place before the wheel knows it, and the other way round.
            let token = core.calls.insert(Call { callback, args, wheel: Token::from_u64(u64::MAX) });
            let wheel = core.engine.wheel.add(when, Err(token));
            if let Some(call) = core.calls.get_mut(token) {
                call.wheel = wheel;
            }
            token
        });
        if !me.turning.load(Relaxed) {
            me.wake(py);
        }
        Timer::new(slf.clone().unbind(), token, when)
    }

    /// Call it in `seconds`.
    #[pyo3(signature = (seconds, callback, *args))]
    fn call_later(slf: &Bound<'_, Self>, seconds: f64, callback: Py<PyAny>, args: Py<PyTuple>) -> PyResult<Timer> {
        let now = slf.get().time(slf.py())?;
        Ok(Self::call_at(slf, now + seconds, callback, args))
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
                        Work::Resume(stream) => visit.call(stream)?,
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
        self.close(py);
    }
}
