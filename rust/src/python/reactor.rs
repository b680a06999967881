//! The reactor's turns: what is ready, what is due, what was posted, what was left over, in this order.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::cell::GilCell;
use super::stream::{self, Stream};
use super::timer::Timer;
use super::unpanicked;
use super::words;
use crate::engine::{Engine, Framing, Poller, Slab, Timeouts, Token};

/// A bit that no token of a stream has: a slab would need two thousand million generations.
pub const WATCHED: u64 = 1 << 63;
/// Seconds that sources get before timers and other threads have their turn, and what was left over after them.
pub const BUDGET: f64 = 0.001;
/// Where no thread turns the reactor.
pub const NO_THREAD: u64 = u64::MAX;

/// A source that is none of the engine's: a socket, and whom to call.
pub struct Watched {
    pub socket: Py<PyAny>,
    pub events: u8,
    pub callback: Py<PyAny>,
}

/// A call that is due at some time.
pub struct Call {
    pub callback: Py<PyAny>,
    pub args: Py<PyTuple>,
    pub wheel: Token,
}

/// What is left over for the next turn.
pub enum Work {
    /// Call this.
    Call(Py<PyAny>),
    /// Go on with the messages of this stream.
    Resume(Py<Stream>),
    /// Wake whoever lets others have their turn with this stream.
    Rested(Py<Stream>),
}

/// Everything that a turn changes.
pub struct Core {
    pub engine: Engine<Token>,
    /// The objects of the engine's streams, by the index of their token.
    pub streams: Vec<Option<Py<Stream>>>,
    pub watched: Slab<Watched>,
    pub by_fd: HashMap<RawFd, Token>,
    pub calls: Slab<Call>,
    pub posted: VecDeque<(Py<PyAny>, Py<PyTuple>)>,
    pub again: VecDeque<Work>,
    /// What the kernel has told of and had no turn yet.
    pub ready: VecDeque<(Token, u8)>,
    pub scratch: Vec<(Token, u8)>,
    /// What is due and was not called yet.
    pub due: VecDeque<Result<Token, Token>>,
    pub flush_soon: Option<Py<PyAny>>,
    /// Whose handler is being called.
    pub current: Option<Py<PyAny>>,
    /// The system's time, where what was just called has looked at the clock as its last act.
    pub latest: Option<f64>,
    /// When the kernel's timer makes the descriptor readable.
    pub rings_at: f64,
    pub framing: Option<(Py<PyAny>, Option<Arc<Framing>>)>,
    pub timeouts: Option<(Py<PyAny>, Arc<Timeouts>)>,
}

/// The native half of a reactor: sources, timers and streams; see `longshore.reactor`.
#[pyclass(frozen, subclass, module = "longshore._native")]
pub struct Reactor {
    pub core: GilCell<Core>,
    pub clock: Option<Py<PyAny>>,
    pub stopping: AtomicBool,
    pub closed: AtomicBool,
    pub woken: AtomicBool,
    pub turning: AtomicBool,
    pub thread: AtomicU64,
    pub busy_since: AtomicU64,
    /// When the wake-up that was not answered yet was asked for: who blocks an event loop is found by that.
    pub woken_at: AtomicU64,
}

/// The clock of `time.monotonic`.
#[inline]
pub fn monotonic() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to what is lent to it for this call; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

pub fn os_error(error: &io::Error) -> PyErr {
    PyOSError::new_err((error.raw_os_error().unwrap_or(0), error.to_string()))
}

#[inline]
pub fn here() -> u64 {
    // SAFETY: it needs nothing.
    unsafe { pyo3::ffi::PyThread_get_thread_ident() as u64 }
}

impl Reactor {
    /// The reactor's time.
    #[inline]
    pub fn time(&self, py: Python<'_>) -> PyResult<f64> {
        match &self.clock {
            None => Ok(monotonic()),
            Some(_) => self.reckon(py, f64::NAN),
        }
    }

    /// The reactor's time, where the system's is known.
    #[inline]
    pub fn reckon(&self, py: Python<'_>, system: f64) -> PyResult<f64> {
        match &self.clock {
            None => Ok(system),
            Some(clock) => clock.bind(py).call_method0(pyo3::intern!(py, "now"))?.extract(),
        }
    }

    /// The same for whoever may need it where no Python may run: the system's clock is read only when asked.
    #[inline]
    pub fn clock(&self, py: Python<'_>) -> PyResult<impl FnOnce() -> f64 + use<>> {
        let known = if self.clock.is_some() { Some(self.time(py)?) } else { None };
        Ok(move || known.unwrap_or_else(monotonic))
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

    /// Since when something that was called has not come back.
    pub fn busy(&self) -> Option<f64> {
        Some(f64::from_bits(self.busy_since.load(Relaxed))).filter(|since| !since.is_nan())
    }

    /// Have something called at `when`.
    pub fn arm(slf: &Bound<'_, Self>, when: f64, callback: Py<PyAny>, args: Py<PyTuple>) -> Timer {
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
            handshake: seconds("handshake", f64::INFINITY)?,
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

    pub fn poller(&self, py: Python<'_>) -> PyResult<Arc<Poller>> {
        let poller = self.with(py, |core| core.engine.poller.clone());
        poller.ok_or_else(|| PyOSError::new_err("the reactor is closed"))
    }

    /// Seconds until something is due; `None`: for ever.
    pub fn sleep(&self, py: Python<'_>) -> PyResult<Option<f64>> {
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

    pub fn turn(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
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
            core.latest = None;
        });
        let served = unpanicked(|| Self::serve(slf, started));
        me.turning.store(false, Relaxed);
        let flushed = unpanicked(|| Self::flush_all(slf, None));
        me.busy_since.store(f64::NAN.to_bits(), Relaxed);
        me.name_current(py, None);
        served.and(flushed)
    }

    pub fn serve(slf: &Bound<'_, Self>, started: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        // The clock is looked at once for each source: when one is done, the next begins.
        let mut now = started;
        while let Some((token, events)) = me.with(py, |core| core.ready.pop_front()) {
            Self::ready(slf, token, events, me.reckon(py, now)?)?;
            now = Self::flush_behind(slf)?.unwrap_or_else(monotonic);
            if now - started > BUDGET {
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
        let again = me.with(py, |core| {
            // What a timer or a posted call has seen of the clock is of before.
            core.latest = None;
            core.again.len()
        });
        let began = if again > 0 { monotonic() } else { started };
        for _ in 0..again {
            match me.with(py, |core| core.again.pop_front()) {
                Some(Work::Call(callback)) => stream::resume(callback.bind(py))?,
                Some(Work::Resume(stream)) => Stream::resume(stream.bind(py))?,
                Some(Work::Rested(stream)) => Stream::rested(stream.bind(py))?,
                None => break,
            }
            // Many that had much to do would keep others waiting as a flood of sources does: the rest goes on next time.
            if Self::flush_behind(slf)?.unwrap_or_else(monotonic) - began > BUDGET {
                break;
            }
        }
        Ok(())
    }

    /// Send what a callback has put off; the system's time when it ended, if it has looked.
    #[inline]
    fn flush_behind(slf: &Bound<'_, Self>) -> PyResult<Option<f64>> {
        let latest = slf.get().with(slf.py(), |core| core.latest.take());
        Self::flush_all(slf, latest)?;
        Ok(latest)
    }

    #[inline]
    pub fn ready(slf: &Bound<'_, Self>, token: Token, events: u8, now: f64) -> PyResult<()> {
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
            Some(Found::Stream(stream, events)) => Stream::ready(stream.bind(py), events, now),
            Some(Found::Watched(callback, events)) => callback.bind(py).call1((events,)).map(drop),
            None => Ok(()),
        }
    }

    pub fn fire(slf: &Bound<'_, Self>, due: Result<Token, Token>, now: f64) -> PyResult<()> {
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

    /// Send what was put off; `latest` is the system's time, if somebody has just looked.
    #[inline]
    pub fn flush_all(slf: &Bound<'_, Self>, latest: Option<f64>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        while let Some(token) = me.with(py, |core| core.engine.dirty.pop_front()) {
            let now = me.reckon(py, latest.unwrap_or_else(monotonic))?;
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
