//! One stream: the Python side of `longshore.reactor.stream.Stream`, over a stream of the engine.
//!
//! It holds what the engine does not know: the socket object, the sink, the cause and the error of the end, and who
//! waits.  It is its own `input` (see `input`), so that a connection costs one object.

use pyo3::exceptions::{PyConnectionError, PyOSError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::arrival::Arrival;
use super::cell::GilCell;
use super::dispatch::Plan;
use super::greenlets;
use super::incoming::Socket;
use super::reactor::{Core, Reactor, Work};
use super::taking::Taking;
use super::words;
use crate::engine::{Due, Effects, READ, Read, State, WRITE};
use crate::engine::{Engine, Token};

/// What a stream holds of Python, and what of it changes.
#[derive(Default)]
pub struct Own {
    /// What it stands on; nothing once that is closed and had no object.
    pub socket: Option<Socket>,
    pub sink: Option<Py<PyAny>>,
    pub framing: Option<Py<PyAny>>,
    pub cause: Option<Py<PyAny>>,
    pub error: Option<Py<PyAny>>,
    /// What has the keys, if it speaks TLS.
    pub tls: Option<Py<PyAny>>,
    /// Whom to hand the messages to.
    pub plan: Option<Plan>,
    /// Whom to call once when something happens, in place of the sink.
    pub waiter: Option<Py<PyAny>>,
    /// Whether that is for input: then it is wanted until the waiter is called.
    pub expecting: bool,
    /// The same, where there are several.
    #[allow(clippy::box_collection)] // hardly any stream has some, and each has the place
    pub more_waiters: Option<Box<Vec<Py<PyAny>>>>,
    /// Whether whoever waits is called when the others had their turn.
    pub resting: bool,
    /// What takes input in a coroutine, to be used again.
    pub taking: Option<Py<Taking>>,
}

impl AsMut<Option<Socket>> for Own {
    fn as_mut(&mut self) -> &mut Option<Socket> {
        &mut self.socket
    }
}

/// A stream socket owned by a native reactor; every method belongs to the reactor's thread.
#[pyclass(frozen, subclass, module = "longshore._native")]
pub struct Stream {
    pub reactor: Py<Reactor>,
    pub token: Token,
    #[pyo3(get)]
    pub peer: Py<PyAny>,
    #[pyo3(get)]
    pub limits: Py<PyAny>,
    pub timeouts: Py<PyAny>,
    pub own: GilCell<Own>,
}

/// When bytes last moved, and whether a handler waits: what others may know of a native stream's deadlines.
#[pyclass(frozen, module = "longshore._native", get_all)]
pub struct Watch {
    /// When the connection was taken.
    pub opened: f64,
    /// When bytes last moved.
    pub last_byte: f64,
    /// Whether a handler waits for input.
    pub waiting: bool,
    /// The connection's timeouts.
    pub timeouts: Py<PyAny>,
}

/// Let whoever waits go on: a task, a greenlet, or somebody who is called.
pub fn resume(waiter: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Ok(arrival) = waiter.cast_exact::<Arrival>() {
        Arrival::arrive(arrival)
    } else if greenlets::is_greenlet(waiter) {
        greenlets::switch(waiter)
    } else {
        waiter.call0().map(drop)
    }
}

impl Stream {
    /// The reactor's Rust half.
    #[inline]
    pub fn reactor(&self) -> &Reactor {
        self.reactor.get()
    }

    /// Reach the engine; `call` runs no Python.
    #[inline]
    pub fn with<R>(&self, py: Python<'_>, call: impl FnOnce(&mut Core) -> R) -> R {
        self.reactor.get().with(py, call)
    }

    pub fn engine<R: Default>(&self, py: Python<'_>, call: impl FnOnce(&mut crate::engine::Stream) -> R) -> R {
        self.with(py, |core| core.engine.stream_mut(self.token).map(call).unwrap_or_default())
    }

    pub fn state(&self, py: Python<'_>) -> State {
        self.with(py, |core| core.engine.stream(self.token).map_or(State::Closed, |stream| stream.state))
    }

    /// The poller found it ready.
    #[inline]
    pub fn ready(slf: &Bound<'_, Self>, events: u8, now: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        if events & WRITE != 0 {
            let effects = me.with(py, |core| core.engine.flush(me.token, now));
            Self::apply(slf, effects)?;
        }
        if events & READ == 0 {
            return Ok(());
        }
        let read = me.with(py, |core| {
            // What was told of the output may have changed what is wanted.
            let wanted = events & WRITE == 0 || core.engine.wanted(me.token, READ) != 0;
            if wanted { core.engine.read(me.token, now) } else { Read::Nothing }
        });
        Self::after_read(slf, read, true, now)
    }

    #[inline]
    pub fn after_read(slf: &Bound<'_, Self>, read: Read, direct: bool, now: f64) -> PyResult<()> {
        match read {
            Read::Nothing => Ok(()),
            Read::Gone(effects) => Self::apply(slf, effects),
            Read::Arrived | Read::Sealed => {
                let told = match read {
                    Read::Sealed => Self::unseal(slf, direct, now),
                    _ => Self::arrived(slf, direct, now),
                };
                let me = slf.get();
                me.with(slf.py(), |core| core.engine.settle(me.token));
                told
            }
        }
    }

    /// Tell that input came, or ended, or that the stream did; `direct` where nothing is half done.
    pub fn arrived(slf: &Bound<'_, Self>, direct: bool, now: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        if me.own.with(py, |own| own.plan.is_some()) {
            if me.telling(py) {
                me.tell(py, intern!(py, "arrived"))?;
            }
            return Self::dispatch_now(slf, now);
        }
        // Whoever only lets others have their turn is not called before it comes to him.
        let resting = me.own.with(py, |own| own.resting && own.waiter.is_some());
        if (resting || me.wake(slf, direct)?) && !me.telling(py) {
            return Ok(());
        }
        me.tell(py, intern!(py, "arrived"))
    }

    /// The others had their turn.
    pub fn rested(slf: &Bound<'_, Self>) -> PyResult<()> {
        let me = slf.get();
        me.own.with(slf.py(), |own| own.resting = false);
        me.wake(slf, true).map(drop)
    }

    pub fn telling(&self, py: Python<'_>) -> bool {
        self.engine(py, |stream| stream.telling)
    }

    pub fn tell(&self, py: Python<'_>, what: &Bound<'_, PyString>) -> PyResult<()> {
        match self.own.with(py, |own| own.sink.as_ref().map(|sink| sink.clone_ref(py))) {
            Some(sink) => sink.bind(py).call_method0(what).map(drop),
            None => Ok(()),
        }
    }

    /// Call whoever waits; true if there was somebody.
    pub fn wake(&self, slf: &Bound<'_, Self>, direct: bool) -> PyResult<bool> {
        let py = slf.py();
        let (first, more) = self.own.with(py, |own| (own.waiter.take(), std::mem::take(&mut own.more_waiters)));
        let Some(first) = first else { return Ok(false) };
        self.engine(py, |stream| stream.taken = 0);
        if self.own.with(py, |own| std::mem::take(&mut own.expecting)) {
            self.want_input(py, false)?;
        }
        for waiter in more.into_iter().flat_map(|more| *more) {
            self.reactor().later(py, Work::Call(waiter));
        }
        if direct {
            self.reactor().name_current(py, Some(slf.clone().into_any().unbind()));
            resume(first.bind(py))?;
        } else {
            // In a callback of its own: the caller must be through before somebody else goes on.
            self.reactor().later(py, Work::Call(first));
        }
        Ok(true)
    }

    /// Have the greenlet that runs now called when something came, and say which one to let go on meanwhile; none where
    /// a wait takes more than that.
    ///
    /// It judges nothing: whoever gets none asks the link, which has the words for what has ended.
    #[inline]
    pub fn rest<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        // One that tells of everything has somebody who has to judge each wait, and at the end there is nothing to wait for.
        if slf.get().engine(py, |stream| stream.telling || stream.input.ended) {
            return Ok(None);
        }
        let Some((current, hub)) = greenlets::current_and_parent(py)? else { return Ok(None) };
        Ok(Self::expect(slf, current.unbind())?.then_some(hub))
    }

    /// Something was thrown at the greenlet that runs now, while it rested.
    #[cold]
    pub fn roused(slf: &Bound<'_, Self>) -> PyResult<()> {
        match greenlets::current_and_parent(slf.py())? {
            Some((current, _)) => slf.get().unpark(slf.py(), current),
            None => Ok(()),
        }
    }

    /// Tell what a call of the engine has brought about.
    #[inline]
    pub fn apply(slf: &Bound<'_, Self>, effects: Effects) -> PyResult<()> {
        if effects.is_empty() { Ok(()) } else { Self::tell_effects(slf, effects) }
    }

    #[cold]
    pub fn tell_effects(slf: &Bound<'_, Self>, effects: Effects) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        if let Some(error) = effects.error {
            let text = py.import("os").and_then(|os| os.call_method1("strerror", (error.raw_os_error(),)));
            let error = PyOSError::new_err((error.raw_os_error(), text.map_or_else(|_| py.None(), Bound::unbind)));
            let cause = if error.value(py).is_instance_of::<PyConnectionError>() { "reset" } else { "error" };
            me.note_end(py, PyString::new(py, cause).into_any().unbind(), Some(error.into_value(py).into_any()));
        }
        if effects.finished {
            return Self::gone(slf);
        }
        if effects.near {
            me.tell(py, intern!(py, "near"))?;
        }
        if effects.sealing {
            Self::seal(slf)?;
        }
        if effects.farewell {
            Self::take_leave(slf)?;
        }
        if effects.drained {
            if me.own.with(py, |own| own.plan.is_some()) {
                me.tell(py, intern!(py, "drained"))?;
                let now = me.reactor().time(py)?;
                return Self::dispatch_now(slf, now);
            }
            if !me.wake(slf, false)? || me.telling(py) {
                return me.tell(py, intern!(py, "drained"));
            }
        }
        Ok(())
    }

    pub fn note_end(&self, py: Python<'_>, cause: Py<PyAny>, error: Option<Py<PyAny>>) {
        let _before = self.own.with(py, |own| {
            let before = own.cause.replace(cause);
            if own.error.is_none() {
                own.error = error;
                (before, None)
            } else {
                (before, error)
            }
        });
    }

    /// The stream is finished: close the socket and tell.
    pub fn gone(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let socket = me.own.with(py, |own| match &own.socket {
            Some(Socket::Object(object)) => Some(Socket::Object(object.clone_ref(py))),
            _ => own.socket.take(),
        });
        if let Some(socket) = socket {
            socket.close(py)?;
        }
        me.farewell(slf)
    }

    pub fn farewell(&self, slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        self.wake(slf, false)?;
        let (sink, cause, error, plan, taking) = self.own.with(py, |own| {
            let error = own.error.as_ref().map(|error| error.clone_ref(py));
            let cause = own.cause.as_ref().map(|cause| cause.clone_ref(py));
            (own.sink.take(), cause, error, own.plan.take(), own.taking.take())
        });
        drop((plan, taking));
        // Not before now: it may be all that keeps this object alive.
        let _us = self.reactor().let_go(py, self.token);
        let cause = cause.unwrap_or_else(|| intern!(py, "finished").clone().into_any().unbind());
        match sink {
            Some(sink) => sink.bind(py).call_method1(intern!(py, "closed"), (cause, error)).map(drop),
            None => Ok(()),
        }
    }

    /// A deadline of this stream may be due.
    pub fn deadline(slf: &Bound<'_, Self>, now: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let (due, effects) = me.with(py, |core| core.engine.overdue(me.token, now));
        Self::apply(slf, effects)?;
        if due == Due::Never {
            return Ok(());
        }
        if due == Due::Idle {
            me.tell(py, intern!(py, "idled"))?;
            let now = me.reactor().time(py)?;
            let lives = me.with(py, |core| {
                let Some(stream) = core.engine.stream(me.token) else { return true };
                let busy = stream.state != State::Open || stream.pending() > 0;
                core.engine.arm(me.token, now) || busy
            });
            if lives {
                return Ok(());
            }
        }
        let error = words::OVERDUE.error(py, (due.name(), me.timeouts.clone_ref(py), me.peer.clone_ref(py)));
        let error = Some(error.into_value(py).into_any());
        if due == Due::Handshake {
            return Self::end_with(slf, intern!(py, "handshake").clone().into_any().unbind(), error, false);
        }
        let cause = intern!(py, "timeout").clone().into_any().unbind();
        if due == Due::Write {
            return Self::end_with(slf, cause, error, true);
        }
        // Whoever was silent for so long is not in the middle of sending, so there is nothing to linger for.
        Self::close(slf, Some(cause), error, false)?;
        Self::arrived(slf, true, now)
    }

    pub fn end_with(slf: &Bound<'_, Self>, cause: Py<PyAny>, error: Option<Py<PyAny>>, reset: bool) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        match me.state(py) {
            State::Closed => return Ok(()),
            State::Closing => drop((cause, error)),
            _ => me.note_end(py, cause, error),
        }
        let effects = me.with(py, |core| core.engine.fail(me.token, reset));
        Self::apply(slf, effects)
    }

    pub fn failure_error(&self, py: Python<'_>) -> PyErr {
        let (error, cause) = self.own.with(py, |own| {
            let error = own.error.as_ref().map(|error| error.clone_ref(py));
            (error, own.cause.as_ref().map(|cause| cause.clone_ref(py)))
        });
        if let Some(error) = error {
            return PyErr::from_value(error.into_bound(py));
        }
        let by_peer = cause.is_some_and(|cause| cause.bind(py).eq("peer closed").unwrap_or(false));
        let word = if by_peer { &words::PEER_CLOSED } else { &words::CLOSED };
        word.error(py, (self.peer.clone_ref(py),))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let (reactor, token) = (&self.reactor, self.token);
        Python::attach(|py| reactor.get().with(py, |core| Engine::remove(&mut core.engine, token)));
    }
}
