//! The methods of a native stream, as Python sees them; what each promises stands in `longshore.reactor.stream`.

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::cell::GilCell;
use super::dispatch::Plan;
use super::incoming::Socket;
use super::reactor::{Reactor, Work};
use super::stream::{Own, Stream, Watch};
use super::words;
use crate::engine::{Options, Read, State};

#[longshore_shield::shielded]
#[pymethods]
impl Stream {
    #[new]
    #[pyo3(signature = (reactor, sock, peer, sink, limits, timeouts, framing, tls = None))]
    #[allow(clippy::too_many_arguments)] // they are those of `reactor.stream`
    fn new(
        py: Python<'_>,
        reactor: Py<Reactor>,
        sock: Bound<'_, PyAny>,
        peer: Py<PyAny>,
        sink: Py<PyAny>,
        limits: Bound<'_, PyAny>,
        timeouts: Bound<'_, PyAny>,
        framing: Bound<'_, PyAny>,
        tls: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let rust = reactor.get();
        let Some(native) = rust.framing(py, &framing)? else {
            return Err(words::NO_FRAMING.error(py, ()));
        };
        let socket = Socket::take(sock)?;
        let options = Options {
            fd: socket.descriptor(py)?,
            framing: native,
            timeouts: rust.timeouts(py, &timeouts)?,
            max_pending: limits.getattr(intern!(py, "max_pending_bytes"))?.extract()?,
        };
        let now = rust.time(py)?;
        let token = rust.with(py, |core| core.engine.open(options, now));
        Ok(Stream {
            reactor,
            token,
            peer,
            limits: limits.unbind(),
            timeouts: timeouts.unbind(),
            own: GilCell::new(Own {
                socket: Some(socket),
                sink: Some(sink),
                framing: Some(framing.unbind()),
                tls,
                ..Own::default()
            }),
        })
    }

    /// The reactor that owns it.
    #[getter]
    fn get_reactor(&self, py: Python<'_>) -> Py<Reactor> {
        self.reactor.clone_ref(py)
    }

    /// The socket, for its options and names; its object is made when somebody asks for it first.
    #[getter]
    fn socket(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Socket::object(py, &self.own)
    }

    /// What came and is not consumed: a native stream answers for that itself.
    #[getter]
    fn input(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// What seals and unseals, if it speaks TLS.
    #[getter]
    fn tls(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.own.with(py, |own| own.tls.as_ref().map(|tls| tls.clone_ref(py)))
    }

    /// One of `lifecycle.CONNECTION`.
    #[getter]
    fn get_state<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::intern(py, self.state(py).name())
    }

    /// Why it ended, as `ConnectionClosed` has it.
    #[getter]
    fn cause<'py>(&self, py: Python<'py>) -> Py<PyAny> {
        let cause = self.own.with(py, |own| own.cause.as_ref().map(|cause| cause.clone_ref(py)));
        cause.unwrap_or_else(|| intern!(py, "finished").clone().into_any().unbind())
    }

    /// What it ended with, if that was an error.
    #[getter]
    fn error(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.own.with(py, |own| own.error.as_ref().map(|error| error.clone_ref(py)))
    }

    /// The error for whoever uses a stream that has ended.
    fn failure(&self, py: Python<'_>) -> Py<PyAny> {
        self.failure_error(py).into_value(py).into_any()
    }

    /// Bytes that came.
    #[getter]
    fn received(&self, py: Python<'_>) -> u64 {
        self.engine(py, |stream| stream.received)
    }

    /// Bytes that the kernel took.
    #[getter]
    fn sent(&self, py: Python<'_>) -> u64 {
        self.engine(py, |stream| stream.sent)
    }

    /// Bytes written that the kernel has not taken.
    #[getter]
    fn pending(&self, py: Python<'_>) -> usize {
        self.engine(py, |stream| stream.pending())
    }

    /// Bytes received, sent, and written that the kernel has not taken.
    fn traffic(&self, py: Python<'_>) -> (u64, u64, usize) {
        self.engine(py, |stream| (stream.received, stream.sent, stream.pending()))
    }

    /// Messages that `dispatch` has handed out.
    #[getter]
    fn messages(&self, py: Python<'_>) -> u64 {
        self.engine(py, |stream| stream.messages)
    }

    /// Whether anything came since our last write: then the peer is owed an answer.
    #[getter]
    fn get_owing(&self, py: Python<'_>) -> bool {
        self.engine(py, |stream| stream.owing)
    }

    #[setter]
    fn set_owing(&self, py: Python<'_>, owing: bool) {
        self.engine(py, |stream| stream.owing = owing);
    }

    /// Whether writes may wait for the end of the callback that makes them.
    #[getter]
    fn get_coalescing(&self, py: Python<'_>) -> bool {
        self.engine(py, |stream| stream.coalescing)
    }

    #[setter]
    fn set_coalescing(&self, py: Python<'_>, coalescing: bool) {
        self.engine(py, |stream| stream.coalescing = coalescing);
    }

    /// Whether the sink wants to be told of everything.
    #[getter]
    fn get_telling(&self, py: Python<'_>) -> bool {
        self.engine(py, |stream| stream.telling)
    }

    #[setter]
    fn set_telling(&self, py: Python<'_>, telling: bool) {
        self.engine(py, |stream| stream.telling = telling);
    }

    /// What others may know of its deadlines.
    #[getter]
    fn watch(&self, py: Python<'_>) -> Watch {
        let (opened, last_byte, waiting) =
            self.engine(py, |stream| (stream.watch.opened, stream.watch.last_byte, stream.watch.waiting));
        Watch { opened, last_byte, waiting, timeouts: self.timeouts.clone_ref(py) }
    }

    /// Begin: with the TLS handshake if there is a session, else ready at once.
    fn start(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        me.reactor().adopt(py, me.token, slf.clone().unbind());
        if let Some(session) = me.tls(py)? {
            return Self::begin_tls(slf, session);
        }
        me.with(py, |core| core.engine.start(me.token));
        me.tell(py, intern!(py, "opened"))?;
        me.with(py, |core| core.engine.update(me.token));
        Ok(())
    }

    /// Speak TLS from the next byte on; the sink's `opened` tells when the handshake is done.
    ///
    /// What is buffered was sent after the peer asked for TLS, so it can only belong to the handshake: it is given to
    /// it, and plaintext that somebody slipped in makes it fail.
    fn start_tls(slf: &Bound<'_, Self>, session: Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        if me.state(py) != State::Open {
            return Err(me.failure_error(py));
        }
        let early = me.engine(py, |stream| stream.input.take_all());
        if !early.is_empty() {
            session.call_method1(intern!(py, "feed"), (PyBytes::new(py, &early),))?;
        }
        Self::begin_tls(slf, session.unbind())
    }

    /// Say whether a handler waits for input: it is what `idle` counts, and it always reads on.
    pub fn want_input(&self, py: Python<'_>, hungry: bool) -> PyResult<()> {
        // Whoever waits no more moves no deadline.
        let now = if hungry { self.reactor().time(py)? } else { 0.0 };
        self.with(py, |core| core.engine.want_input(self.token, hungry, now));
        Ok(())
    }

    /// Read nothing for now, or read again as before.
    fn hold(&self, py: Python<'_>, held: bool) {
        self.with(py, |core| core.engine.hold(self.token, held));
    }

    /// Call `waiter` once when something happens, in place of the sink's methods but `closed`.
    fn park(&self, py: Python<'_>, waiter: Py<PyAny>) -> PyResult<()> {
        self.own.with(py, |own| {
            if own.waiter.is_none() {
                own.waiter = Some(waiter);
            } else {
                own.more_waiters.get_or_insert_default().push(waiter);
            }
        });
        Ok(())
    }

    /// Want input, and call `waiter` once when something happens; false, and nothing done, where that takes more.
    ///
    /// Who is sated wants no input, and is called when the others had their turn.
    pub fn expect(slf: &Bound<'_, Self>, waiter: Py<PyAny>) -> PyResult<bool> {
        let py = slf.py();
        let me = slf.get();
        if !me.reactor().on_thread() || me.own.with(py, |own| own.waiter.is_some()) {
            return Ok(false);
        }
        let now = me.reactor().time(py)?;
        let (open, sated) = me.with(py, |core| match core.engine.stream(me.token) {
            Some(stream) if stream.state == State::Open => {
                let sated = stream.sated();
                if !sated {
                    core.engine.want_input(me.token, true, now);
                }
                (true, sated)
            }
            _ => (false, false),
        });
        if !open {
            return Ok(false);
        }
        let rests = me.own.with(py, |own| {
            own.waiter = Some(waiter);
            own.expecting = !sated;
            sated && !std::mem::replace(&mut own.resting, true)
        });
        if rests {
            me.reactor().later(py, Work::Rested(slf.clone().unbind()));
        }
        Ok(true)
    }

    /// Hand out no more than `share` pieces of the input before others had their turn; the input that does so.
    fn in_shares(slf: Bound<'_, Self>, share: u32) -> Bound<'_, Self> {
        slf.get().engine(slf.py(), |stream| stream.share = share);
        slf
    }

    /// Whether the input has more, and hands it out when others had their turn.
    fn sated(&self, py: Python<'_>) -> bool {
        self.engine(py, |stream| stream.sated())
    }

    /// Hand out another share at once, for whoever cannot wait; false if that is not what he waits for.
    fn excuse(&self, py: Python<'_>) -> bool {
        self.engine(py, |stream| stream.sated() && std::mem::take(&mut stream.taken) > 0)
    }

    /// Whether it ends, or has ended, and nothing is left to take.
    #[getter(spent)]
    pub fn is_spent(&self, py: Python<'_>) -> bool {
        self.with(py, |core| {
            core.engine
                .stream(self.token)
                .is_none_or(|stream| matches!(stream.state, State::Closing | State::Closed) && stream.input.size() == 0)
        })
    }

    /// Write, if that needs no waiting and nobody else's thread; false, and nothing done, where it takes more.
    #[inline]
    pub fn offer(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = slf.py();
        let me = slf.get();
        let Ok(data) = data.cast_exact::<PyBytes>() else { return Ok(false) };
        if !me.reactor().on_thread() {
            return Ok(false);
        }
        let now = me.reactor().clock(py)?;
        let (sent, dirty) = me.with(py, |core| {
            let bytes = data.as_bytes();
            let sent = core.engine.offer(me.token, bytes, now);
            (sent, core.engine.dirty.len() == 1)
        });
        let Some(effects) = sent else { return Ok(false) };
        if dirty {
            me.reactor().flush_is_due(py)?;
        }
        Self::apply(slf, effects)?;
        Ok(true)
    }

    /// Call whoever is parked, each in a callback of its own.
    #[pyo3(name = "wake")]
    fn wake_parked(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().wake(slf, false).map(drop)
    }

    /// Call `waiter` no more; what another one expects stays expected.
    pub fn unpark(&self, py: Python<'_>, waiter: Bound<'_, PyAny>) -> PyResult<()> {
        let (first, more, expecting) = self.own.with(py, |own| {
            (own.waiter.take(), std::mem::take(&mut own.more_waiters), std::mem::take(&mut own.expecting))
        });
        for (place, parked) in first.into_iter().chain(more.into_iter().flat_map(|more| *more)).enumerate() {
            let expects = expecting && place == 0;
            if !parked.bind(py).eq(&waiter)? {
                self.park(py, parked)?;
                self.own.with(py, |own| own.expecting |= expects);
            } else if expects {
                self.want_input(py, false)?;
            }
        }
        Ok(())
    }

    /// Read what the kernel has already, without waiting for it to tell: it counts as arrived.
    fn take_arrived(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let now = me.reactor().time(py)?;
        let read = me.with(py, |core| match core.engine.stream(me.token) {
            Some(stream) if stream.state == State::Open && stream.reading() => core.engine.read(me.token, now),
            _ => Read::Nothing,
        });
        Self::after_read(slf, read, false, now)
    }

    /// Read no more: the handler sees the end of the stream.
    fn end_input(&self, py: Python<'_>) {
        self.with(py, |core| {
            if let Some(stream) = core.engine.stream_mut(self.token) {
                stream.input.ended = true;
            }
            core.engine.update(self.token);
        });
    }

    /// Queue bytes, and send what can be sent unless they may be coalesced with what follows.
    fn write(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let now = me.reactor().clock(py)?;
        match me.with(py, |core| (core.engine.write(me.token, data, now), core.engine.dirty.is_empty())) {
            (Some(effects), true) => Self::apply(slf, effects),
            (Some(effects), false) => {
                me.reactor().flush_is_due(py)?;
                Self::apply(slf, effects)
            }
            (None, _) if me.state(py) == State::Open => Err(words::SHUT.error(py, (me.peer.clone_ref(py),))),
            (None, _) => Err(me.failure_error(py)),
        }
    }

    /// Send what the kernel takes now.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let now = me.reactor().time(py)?;
        let effects = me.with(py, |core| core.engine.flush(me.token, now));
        Self::apply(slf, effects)
    }

    /// Send the end of our side after what is pending; the peer may go on sending.
    fn shutdown_output(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let now = me.reactor().time(py)?;
        let effects = me.with(py, |core| core.engine.shutdown_output(me.token, now));
        Self::apply(slf, effects)
    }

    /// Flush, end our side, let the peer read it, close.
    #[pyo3(signature = (cause = None, error = None, *, linger = true))]
    pub fn close(
        slf: &Bound<'_, Self>,
        cause: Option<Py<PyAny>>,
        error: Option<Py<PyAny>>,
        linger: bool,
    ) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        if matches!(me.state(py), State::Closing | State::Closed) {
            return Ok(());
        }
        let cause = cause.unwrap_or_else(|| intern!(py, "finished").clone().into_any().unbind());
        me.note_end(py, cause, error);
        let now = me.reactor().time(py)?;
        let effects = me.with(py, |core| core.engine.close(me.token, linger, now));
        Self::apply(slf, effects)
    }

    /// Reset the connection: the peer gets an RST, and what is pending is lost.
    #[pyo3(signature = (cause = None, error = None))]
    fn abort(slf: &Bound<'_, Self>, cause: Option<Py<PyAny>>, error: Option<Py<PyAny>>) -> PyResult<()> {
        let cause = cause.unwrap_or_else(|| intern!(slf.py(), "aborted").clone().into_any().unbind());
        Self::end_with(slf, cause, error, true)
    }

    /// End at once; waiters and later calls get `error`.
    fn fail(slf: &Bound<'_, Self>, cause: Py<PyAny>, error: Option<Py<PyAny>>) -> PyResult<()> {
        Self::end_with(slf, cause, error, false)
    }

    /// Give the socket away, with the bytes that were read and not consumed.
    fn detach<'py>(slf: &Bound<'py, Self>) -> PyResult<(Py<PyAny>, Bound<'py, PyBytes>)> {
        let py = slf.py();
        let me = slf.get();
        if me.state(py) != State::Open {
            return Err(words::CLOSED.error(py, (me.peer.clone_ref(py),)));
        }
        if me.tls(py)?.is_some() {
            return Err(words::BOUND.error(py, ()));
        }
        Self::flush(slf)?;
        let (unread, socket) = Self::release(slf)?;
        me.farewell(slf)?;
        Ok((socket, unread))
    }

    /// Take out what was written and not sent.
    fn take_output<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let unsent = self.with(py, |core| core.engine.take_output(self.token));
        PyBytes::new(py, &unsent)
    }

    /// Let go of the socket without a word to anybody: what was read and not consumed, and the socket.
    fn release<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyBytes>, Py<PyAny>)> {
        let py = slf.py();
        let me = slf.get();
        let unread = me.with(py, |core| {
            let unread = core.engine.stream_mut(me.token).map(|stream| stream.input.take_all());
            core.engine.release(me.token);
            unread.unwrap_or_default()
        });
        let socket = Socket::object(py, &me.own)?;
        Ok((PyBytes::new(py, &unread), socket))
    }

    /// Hand everything over that a stream which takes this one's place goes on with, and forget it.
    #[allow(clippy::type_complexity)]
    fn surrender(
        &self,
        py: Python<'_>,
    ) -> (Option<Py<PyAny>>, Option<(Py<PyAny>, Option<Py<PyAny>>, Py<PyAny>, bool)>) {
        let (sink, plan, taking) = self.own.with(py, |own| (own.sink.take(), own.plan.take(), own.taking.take()));
        let us = self.reactor().let_go(py, self.token);
        drop((us, taking));
        (sink, plan.map(Plan::into_parts))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.reactor)?;
        visit.call(&self.peer)?;
        visit.call(&self.limits)?;
        visit.call(&self.timeouts)?;
        self.own
            .visit(|own| {
                if let Some(Socket::Object(object)) = &own.socket {
                    visit.call(object)?;
                }
                for object in [&own.sink, &own.framing, &own.cause, &own.error, &own.tls, &own.waiter] {
                    visit.call(object)?;
                }
                for waiter in own.more_waiters.iter().flat_map(|more| more.iter()) {
                    visit.call(waiter)?;
                }
                visit.call(&own.taking)?;
                own.plan.as_ref().map_or(Ok(()), |plan| plan.visit(&visit))
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let _all = self.own.with(py, |own| {
            let mut all = std::mem::take(own);
            // What is ours alone keeps nothing alive, and is closed with the stream, whom the poller has to forget first.
            if let Some(Socket::Bare(_)) = all.socket {
                own.socket = all.socket.take();
            }
            all
        });
    }
}
