//! TLS on a native stream: its keys are Python's (`longshore.tls.Session`), its bytes, framing and deadlines the engine's.

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::stream::Stream;
use super::words;
use crate::engine::State;

impl Stream {
    /// What seals and unseals.
    fn session<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let session = self.own.with(py, |own| own.tls.as_ref().map(|tls| tls.bind(py).clone()));
        session.ok_or_else(|| self.failure_error(py))
    }

    /// Speak TLS from the next byte on: with the keys of `session`, which may have been fed already.
    pub fn begin_tls(slf: &Bound<'_, Self>, session: Py<PyAny>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let now = me.reactor().time(py)?;
        let _before = me.own.with(py, |own| own.tls.replace(session));
        me.with(py, |core| core.engine.begin_sealing(me.token, now));
        Self::shake_hands(slf)
    }

    /// Go on with the handshake.
    fn shake_hands(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let done = me.session(py)?.call_method0(intern!(py, "handshake")).and_then(|done| done.extract::<bool>());
        // Where it failed that is the alert which says so.
        Self::send_outgoing(slf)?;
        match done {
            Err(error) => Self::handshake_failed(slf, words::REFUSED.error(py, (&me.peer, error.into_value(py)))),
            Ok(true) if me.state(py) == State::Opening => {
                let now = me.reactor().time(py)?;
                me.with(py, |core| core.engine.end_handshake(me.token, now));
                me.wake(slf, false)?;
                me.tell(py, intern!(py, "opened"))?;
                // Whoever's messages were handed over before goes on waiting for them.
                Self::dispatch_now(slf, now)
            }
            Ok(_) => Ok(()),
        }
    }

    fn handshake_failed(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        let cause = intern!(py, "handshake").clone().into_any().unbind();
        Self::end_with(slf, cause, Some(error.into_value(py).into_any()), false)
    }

    /// Send what TLS itself has to say.
    fn send_outgoing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let outgoing = slf.get().session(slf.py())?.call_method0(intern!(slf.py(), "outgoing"))?;
        Self::send_sealed(slf, outgoing.cast::<PyBytes>()?, 0)
    }

    fn send_sealed(slf: &Bound<'_, Self>, ciphertext: &Bound<'_, PyBytes>, before: usize) -> PyResult<()> {
        let me = slf.get();
        let now = me.reactor().time(slf.py())?;
        let effects = me.with(slf.py(), |core| core.engine.sealed(me.token, ciphertext.as_bytes(), before, now));
        Self::apply(slf, effects)
    }

    /// Ciphertext came, or its end; `direct` where nothing is half done.
    pub fn unseal(slf: &Bound<'_, Self>, direct: bool, now: f64) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let mut ciphertext = me.with(py, |core| core.engine.take_arrived(me.token, |bytes| PyBytes::new(py, bytes)));
        // The end of the stream is not fed: OpenSSL takes one without close_notify for an attack and refuses to send
        // from then on, but a peer that half-closed is still owed its replies.
        let hung_up = ciphertext.as_bytes().is_empty();
        let session = me.session(py)?;
        if me.state(py) == State::Opening {
            session.call_method1(intern!(py, "feed"), (&ciphertext,))?;
            Self::shake_hands(slf)?;
            match me.state(py) {
                State::Open => ciphertext = PyBytes::new(py, b""),
                State::Opening if hung_up => {
                    return Self::handshake_failed(slf, words::HUNG_UP.error(py, (&me.peer,)));
                }
                _ => return Ok(()),
            }
        }
        let said = session.call_method1(intern!(py, "receive"), (ciphertext,));
        if me.state(py) == State::Closed {
            return Ok(());
        }
        let said = match said {
            Ok(said) => said,
            Err(error) => return Self::broken_seal(slf, error),
        };
        let said = said.cast::<PyTuple>()?;
        let (plain, ended, owed) = (said.get_item(0)?, said.get_item(1)?.extract::<bool>()?, said.get_item(2)?);
        let owed = owed.cast::<PyBytes>()?;
        if !owed.as_bytes().is_empty() {
            Self::send_sealed(slf, owed, 0)?;
        }
        let plain = plain.cast::<PyBytes>()?.as_bytes();
        let ended = ended || hung_up;
        if (plain.is_empty() && !ended) || !me.with(py, |core| core.engine.deliver(me.token, plain, ended)) {
            return Ok(());
        }
        Self::arrived(slf, direct, now)
    }

    /// Seal what was written, and send it.
    pub fn seal(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let me = slf.get();
        let plain = me.with(py, |core| core.engine.take_plain(me.token, |bytes| PyBytes::new(py, bytes)));
        let Some((plain, before)) = plain else { return Ok(()) };
        match me.session(py)?.call_method1(intern!(py, "send"), (plain,)) {
            Ok(ciphertext) => Self::send_sealed(slf, ciphertext.cast::<PyBytes>()?, before),
            Err(error) => Self::broken_seal(slf, error),
        }
    }

    /// Tell the peer that no more comes (close_notify); the session stays, as it may go on sending.
    pub fn take_leave(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().session(slf.py())?.call_method0(intern!(slf.py(), "end"))?;
        Self::send_outgoing(slf)
    }

    /// The peer broke the protocol.
    #[cold]
    fn broken_seal(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        Self::send_outgoing(slf)?;
        let cause = intern!(py, "error").clone().into_any().unbind();
        Self::end_with(slf, cause, Some(error.into_value(py).into_any()), false)
    }
}
