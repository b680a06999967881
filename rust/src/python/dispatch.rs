//! Handing messages over: the hot path, and the only place that calls a handler for one.
//!
//! A message is cut, made into `bytes`, given to the handler by a vectorcall, and its reply is encoded straight into
//! the output of the stream; the engine is lent to nobody meanwhile.  What is unusual is the receiver's business: see
//! `longshore.reactor.dispatch`, which is the same in Python and says what each step means.

use std::ptr;

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::reactor::Work;
use super::stream::Stream;
use crate::engine::{Exchange, State, Step};

/// Messages that one connection may have handled before the others get their turn.
const BATCH: usize = 64;
/// The same, for handlers that take all at once.
const LARGE_BATCH: usize = 256;

/// Whom to hand the messages of a stream to.
pub struct Plan {
    call: Py<PyAny>,
    subject: Option<Py<PyAny>>,
    receiver: Py<PyAny>,
    batches: bool,
    /// Whether a message is being handled: what a handler causes is seen to when it returns.
    busy: bool,
    /// Whether the rest is handled in the next turn.
    scheduled: bool,
}

impl Plan {
    pub fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.call)?;
        visit.call(&self.subject)?;
        visit.call(&self.receiver)
    }

    pub fn into_parts(self) -> (Py<PyAny>, Option<Py<PyAny>>, Py<PyAny>, bool) {
        (self.call, self.subject, self.receiver, self.batches)
    }
}

/// What is used of a plan while it runs.
struct Callee<'py> {
    call: Bound<'py, PyAny>,
    subject: Option<Bound<'py, PyAny>>,
    receiver: Bound<'py, PyAny>,
}

/// One step, without what it borrows.
enum Next<'py> {
    Message(Bound<'py, PyBytes>),
    Dry,
    Held,
    Over,
    Ended {
        malformed: bool,
    },
    /// There may be more, but it is the turn of others.
    Enough,
}

impl<'py> Next<'py> {
    #[inline]
    fn of(py: Python<'py>, step: Step<'_>) -> Self {
        match step {
            Step::Message(message) => Next::Message(PyBytes::new(py, message)),
            Step::Dry => Next::Dry,
            Step::Held => Next::Held,
            Step::Over => Next::Over,
            Step::PeerClosed => Next::Ended { malformed: false },
            Step::Bad => Next::Ended { malformed: true },
        }
    }
}

impl<'py> Callee<'py> {
    /// Call the handler for one message.
    #[inline]
    fn handle(&self, message: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = message.py();
        let mut args = [ptr::null_mut(), message.as_ptr(), ptr::null_mut()];
        let mut count = 1;
        if let Some(subject) = &self.subject {
            args[2] = subject.as_ptr();
            count = 2;
        }
        // SAFETY: the arguments live in bound references during the call, and the place in front of them is free for
        // the callee, as the flag promises; what it returns is a new reference, or null with an error set.
        unsafe {
            let result = ffi::PyObject_Vectorcall(
                self.call.as_ptr(),
                args.as_ptr().add(1),
                count | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                ptr::null_mut(),
            );
            Bound::from_owned_ptr_or_err(py, result)
        }
    }

    /// What left the handler is the receiver's business, unless it ends the thread's.
    #[cold]
    fn failed(&self, error: PyErr) -> PyResult<()> {
        let py = self.call.py();
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        self.receiver.call_method1(intern!(py, "handler_failed"), (error.into_value(py),)).map(drop)
    }

    /// Let the receiver send what this file does not.
    #[cold]
    fn send(&self, reply: Bound<'py, PyAny>) -> PyResult<()> {
        let py = reply.py();
        self.receiver.call_method1(intern!(py, "send"), (reply,)).map(drop)
    }
}

impl Stream {
    /// Handle what is there, unless that is being done already.
    pub fn dispatch_now(slf: &Bound<'_, Self>, began: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let found = me.own.with(py, |own| {
            let plan = own.plan.as_mut().filter(|plan| !plan.busy && !plan.scheduled)?;
            plan.busy = true;
            let callee = Callee {
                call: plan.call.bind(py).clone(),
                subject: plan.subject.as_ref().map(|subject| subject.bind(py).clone()),
                receiver: plan.receiver.bind(py).clone(),
            };
            Some((callee, plan.batches))
        });
        let Some((callee, batches)) = found else { return Ok(()) };
        me.reactor().name_current(py, Some(slf.clone().into_any().unbind()));
        let outcome = if batches { Self::batch(slf, &callee, began) } else { Self::one_by_one(slf, &callee, began) };
        let more = *outcome.as_ref().unwrap_or(&false);
        let open = me.with(py, |core| {
            let stream = core.engine.stream(me.token)?;
            (stream.state == State::Open).then_some(stream.telling)
        });
        let scheduled = more && open.is_some();
        me.own.with(py, |own| {
            if let Some(plan) = own.plan.as_mut() {
                plan.busy = false;
                plan.scheduled = scheduled;
            }
        });
        outcome?;
        if scheduled {
            me.reactor().later(py, Work::Resume(slf.clone().unbind()));
        } else if open == Some(true) {
            callee.receiver.call_method0(intern!(py, "ran_dry"))?;
        }
        Ok(())
    }

    /// Go on with what the last turn left over.
    pub fn resume(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        me.own.with(py, |own| {
            if let Some(plan) = own.plan.as_mut() {
                plan.scheduled = false;
            }
        });
        let now = me.reactor().time(py)?;
        let outcome = Self::dispatch_now(slf, now);
        me.with(py, |core| core.engine.settle(me.token));
        outcome
    }

    /// A message at a time; true if there may be more.
    #[inline]
    fn one_by_one(slf: &Bound<'_, Self>, callee: &Callee<'_>, now: f64) -> PyResult<bool> {
        let mut next = Self::next(slf, true);
        let mut handled = 0;
        while let Next::Message(message) = next {
            handled += 1;
            let more = handled < BATCH;
            next = match callee.handle(message.into_any()) {
                Ok(answer) if answer.is_none() => Self::next(slf, more),
                Ok(answer) => Self::exchange(slf, callee, answer, now, more)?,
                Err(error) => {
                    callee.failed(error)?;
                    Self::next(slf, more)
                }
            };
        }
        Self::pause(slf, callee, &next, now, handled > 0)
    }

    /// The next message, unless there were enough.
    #[inline]
    fn next<'py>(slf: &Bound<'py, Self>, more: bool) -> Next<'py> {
        let py = slf.py();
        let me = slf.get();
        if more { me.with(py, |core| Next::of(py, core.engine.step(me.token))) } else { Next::Enough }
    }

    /// Send a reply; the next message is cut under the same borrow.
    #[inline]
    fn exchange<'py>(
        slf: &Bound<'py, Self>,
        callee: &Callee<'py>,
        reply: Bound<'py, PyAny>,
        now: f64,
        more: bool,
    ) -> PyResult<Next<'py>> {
        let py = slf.py();
        let me = slf.get();
        let sent = reply.cast_exact::<PyBytes>().ok().and_then(|bytes| {
            me.with(py, |core| match core.engine.exchange(me.token, bytes.as_bytes(), now, more) {
                Exchange::Next(step) => Some(Ok(Next::of(py, step))),
                Exchange::Sent(effects) => Some(Err(effects)),
                Exchange::Refused => None,
            })
        });
        match sent {
            Some(Ok(next)) => return Ok(next),
            Some(Err(effects)) => Self::apply(slf, effects)?,
            None => {
                if let Err(error) = callee.send(reply) {
                    callee.failed(error)?;
                }
            }
        }
        Ok(Self::next(slf, more))
    }

    /// No message is next; true if there may be more in the next turn.
    #[inline]
    fn pause(slf: &Bound<'_, Self>, callee: &Callee<'_>, last: &Next<'_>, now: f64, handled: bool) -> PyResult<bool> {
        match last {
            Next::Over => {}
            Next::Ended { malformed } => slf.get().input_failed(callee, *malformed)?,
            other => Self::batch_ended(slf, now, handled, matches!(other, Next::Dry))?,
        }
        Ok(matches!(last, Next::Enough))
    }

    /// All messages at once; true if there may be more.
    fn batch(slf: &Bound<'_, Self>, callee: &Callee<'_>, now: f64) -> PyResult<bool> {
        let py = slf.py();
        let mut found = Vec::new();
        let last = loop {
            match Self::next(slf, found.len() < LARGE_BATCH) {
                Next::Message(message) => found.push(message),
                other => break other,
            }
        };
        if found.is_empty() {
            return Self::pause(slf, callee, &last, now, false);
        }
        if let Err(error) = Self::handle_batch(slf, callee, PyList::new(py, found)?, now) {
            callee.failed(error)?;
        }
        Self::batch_ended(slf, now, true, false)?;
        Ok(true)
    }

    fn handle_batch(slf: &Bound<'_, Self>, callee: &Callee<'_>, batch: Bound<'_, PyList>, now: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let answers = callee.handle(batch.into_any())?;
        if answers.is_none() {
            return Ok(());
        }
        me.with(py, |core| core.engine.cork(me.token));
        let sent = (|| {
            for reply in answers.try_iter()? {
                let reply = reply?;
                let queued = reply
                    .cast_exact::<PyBytes>()
                    .ok()
                    .and_then(|bytes| me.with(py, |core| core.engine.reply(me.token, bytes.as_bytes(), now)));
                match queued {
                    Some(effects) => Self::apply(slf, effects)?,
                    None => callee.send(reply)?,
                }
            }
            Ok(())
        })();
        let effects = me.with(py, |core| core.engine.uncork(me.token, now));
        Self::apply(slf, effects)?;
        sent
    }

    /// Nothing is handled for now: wait for more, or for the next turn.
    #[inline]
    fn batch_ended(slf: &Bound<'_, Self>, began: f64, handled: bool, hungry: bool) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let now = me.reactor().time(py)?;
        let is_systems = me.reactor().clock.is_none();
        me.with(py, |core| {
            core.latest = is_systems.then_some(now);
            if handled {
                core.engine.counters.took(now - began);
            }
            core.engine.want_input(me.token, hungry, now);
        });
        Ok(())
    }

    #[cold]
    fn input_failed(&self, callee: &Callee<'_>, malformed: bool) -> PyResult<()> {
        let py = callee.call.py();
        if !malformed {
            return callee.receiver.call_method0(intern!(py, "input_ended")).map(drop);
        }
        let error = self.malformed(py);
        callee.receiver.call_method1(intern!(py, "input_failed"), (error.into_value(py),)).map(drop)
    }
}

#[longshore_shield::shielded]
#[pymethods]
impl Stream {
    /// Hand the messages of this stream to a handler from now on; see `longshore.reactor.Receiver`.
    #[pyo3(signature = (call, subject, receiver, *, batches = false))]
    fn dispatch(
        slf: &Bound<'_, Self>,
        call: Py<PyAny>,
        subject: Option<Py<PyAny>>,
        receiver: Py<PyAny>,
        batches: bool,
    ) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let plan = Plan { call, subject, receiver, batches, busy: false, scheduled: false };
        let _before = me.own.with(py, |own| own.plan.replace(plan));
        Self::go_on(slf)
    }

    /// Handle what is there, because something changed.
    fn go_on(slf: &Bound<'_, Self>) -> PyResult<()> {
        let now = slf.get().reactor().time(slf.py())?;
        Stream::dispatch_now(slf, now)
    }
}
