//! The deadlines of one connection: the twin of `longshore.limits.Watch`, rule for rule.
//!
//! Bytes only ever move deadlines later, so whoever armed a timer for [`Watch::deadline`] may leave it and ask again
//! when it fires; only `wait`, `output`, the last of it that leaves and, under `min_rate`, the first byte of a message
//! can bring one nearer.

/// A message is not judged by `min_rate` before it has had this long (seconds).
const RATE_GRACE: f64 = 5.0;

/// Seconds; infinity where there is no deadline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeouts {
    /// A TLS handshake.
    pub handshake: f64,
    /// The first byte.
    pub first_byte: f64,
    /// Silence both ways while a handler waits.
    pub idle: f64,
    /// Output of which the peer takes nothing.
    pub write: f64,
    /// A connection's whole life.
    pub lifetime: f64,
    /// What the peer may still send after our end.
    pub linger: f64,
    /// Bytes a second of a partial message; 0 where there is no rate.
    pub min_rate: f64,
}

/// Which timeout it is; the names are those of `Timeouts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// None will fall due.
    Never,
    /// `handshake`
    Handshake,
    /// `lifetime`
    Lifetime,
    /// `write`
    Write,
    /// `linger`
    Linger,
    /// `first_byte`
    FirstByte,
    /// `idle`
    Idle,
    /// `min_rate`
    MinRate,
}

impl Due {
    /// The field of `Timeouts`.
    pub fn name(self) -> &'static str {
        match self {
            Due::Never => "",
            Due::Handshake => "handshake",
            Due::Lifetime => "lifetime",
            Due::Write => "write",
            Due::Linger => "linger",
            Due::FirstByte => "first_byte",
            Due::Idle => "idle",
            Due::MinRate => "min_rate",
        }
    }
}

/// When what happened last.
#[derive(Debug)]
pub struct Watch {
    /// When it was made.
    pub opened: f64,
    /// When its TLS handshake began, while that is made; since then when it was over, or when it was opened.
    ready: f64,
    /// When bytes last moved, either way.
    pub last_byte: f64,
    /// When the peer last took output.
    last_progress: f64,
    /// When the message that is partial began.
    partial_since: f64,
    partial_bytes: u64,
    /// When we ended our side.
    pub closing_since: f64,
    /// Whether a TLS handshake is being made.
    handshaking: bool,
    /// Whether nothing has come yet.
    first: bool,
    /// Whether something came since the handler last waited.
    fresh: bool,
    /// Whether a handler waits for input.
    pub waiting: bool,
    /// Whether output waits for the peer.
    pending: bool,
}

impl Watch {
    /// A connection that is ready now.
    pub fn new(now: f64) -> Self {
        Watch {
            opened: now,
            ready: now,
            last_byte: now,
            last_progress: now,
            partial_since: f64::INFINITY,
            partial_bytes: 0,
            closing_since: f64::INFINITY,
            handshaking: false,
            first: true,
            fresh: false,
            waiting: false,
            pending: false,
        }
    }

    /// A TLS handshake is to be made from now on.
    pub fn begin_handshake(&mut self, now: f64) {
        self.handshaking = true;
        self.ready = now;
    }

    /// The TLS handshake is done: what comes is the first of the connection.
    pub fn end_handshake(&mut self, now: f64) {
        self.handshaking = false;
        self.ready = now;
        self.last_byte = now;
        self.first = true;
        self.whole();
    }

    /// `count` bytes came.
    #[inline]
    pub fn received(&mut self, count: usize, now: f64) {
        self.first = false;
        self.fresh = true;
        self.last_byte = now;
        if self.partial_since == f64::INFINITY {
            self.partial_since = now;
            self.partial_bytes = 0;
        }
        self.partial_bytes += count as u64;
    }

    /// A handler waits for input from now on: the time that it spent on what came is its own, not the peer's.
    #[inline]
    pub fn wait(&mut self, now: f64) {
        self.waiting = true;
        if self.fresh {
            self.fresh = false;
            self.last_byte = now;
        }
    }

    /// No message is partial any more.
    #[inline]
    pub fn whole(&mut self) {
        self.partial_since = f64::INFINITY;
    }

    /// Output is pending from now on.
    pub fn output(&mut self, now: f64) {
        if !self.pending {
            self.pending = true;
            self.last_progress = now;
        }
    }

    /// The kernel took bytes; `left` says whether output is still pending.
    #[inline]
    pub fn sent(&mut self, now: f64, left: bool) {
        self.last_byte = now;
        self.last_progress = now;
        self.pending = left;
    }

    /// When the next timeout falls due, and which.
    pub fn deadline(&self, limits: &Timeouts) -> (f64, Due) {
        let mut found = (f64::INFINITY, Due::Never);
        let mut look = |when: f64, due: Due| {
            if when < found.0 {
                found = (when, due);
            }
        };
        look(self.opened + limits.lifetime, Due::Lifetime);
        if self.handshaking {
            look(self.ready + limits.handshake, Due::Handshake);
            return found;
        }
        if self.pending {
            look(self.last_progress + limits.write, Due::Write);
        }
        if self.closing_since != f64::INFINITY {
            if !self.pending {
                // The peer has its time from our last byte on, however long it took to leave.
                look(self.closing_since.max(self.last_progress) + limits.linger, Due::Linger);
            }
        } else if self.waiting {
            if self.first {
                look(self.ready + limits.first_byte, Due::FirstByte);
            }
            if !self.pending {
                // What the peer leaves untaken is for `write` to judge: it is not silence.
                look(self.last_byte + limits.idle, Due::Idle);
            }
            if limits.min_rate > 0.0 {
                look(self.partial_since + RATE_GRACE + self.partial_bytes as f64 / limits.min_rate, Due::MinRate);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Timeouts = Timeouts {
        handshake: 10.0,
        first_byte: 60.0,
        idle: 600.0,
        write: 30.0,
        lifetime: f64::INFINITY,
        linger: 2.0,
        min_rate: 100.0,
    };

    #[test]
    fn a_handshake_has_its_own_time_and_the_first_byte_its_own_after_it() {
        let mut watch = Watch::new(0.0);
        watch.begin_handshake(1.0);
        watch.received(500, 2.0);
        watch.wait(2.0);
        assert_eq!(watch.deadline(&LIMITS), (11.0, Due::Handshake));
        watch.end_handshake(8.0);
        assert_eq!(watch.deadline(&LIMITS), (68.0, Due::FirstByte));
    }

    #[test]
    fn nothing_is_due_while_a_handler_works() {
        let mut watch = Watch::new(10.0);
        assert_eq!(watch.deadline(&LIMITS), (f64::INFINITY, Due::Never));
        watch.wait(10.0);
        assert_eq!(watch.deadline(&LIMITS), (70.0, Due::FirstByte));
        watch.received(5, 20.0);
        watch.waiting = false;
        assert_eq!(watch.deadline(&LIMITS), (f64::INFINITY, Due::Never));
        watch.wait(50.0);
        watch.whole();
        assert_eq!(watch.deadline(&LIMITS), (650.0, Due::Idle));
    }

    #[test]
    fn a_slow_message_is_judged_by_its_rate_after_a_grace() {
        let mut watch = Watch::new(0.0);
        watch.received(100, 1.0);
        watch.wait(1.0);
        assert_eq!(watch.deadline(&LIMITS), (7.0, Due::MinRate));
        watch.received(100, 3.0);
        assert_eq!(watch.deadline(&LIMITS), (8.0, Due::MinRate));
    }

    #[test]
    fn nobody_is_idle_while_output_is_pending() {
        let mut watch = Watch::new(0.0);
        watch.received(1, 0.0);
        watch.wait(0.0);
        watch.whole();
        watch.output(595.0);
        assert_eq!(watch.deadline(&LIMITS), (625.0, Due::Write));
        watch.sent(620.0, true);
        assert_eq!(watch.deadline(&LIMITS), (650.0, Due::Write));
        watch.sent(640.0, false);
        assert_eq!(watch.deadline(&LIMITS), (1240.0, Due::Idle));
    }

    #[test]
    fn progress_moves_the_write_deadline_and_lingering_begins_when_all_is_sent() {
        let mut watch = Watch::new(0.0);
        watch.output(5.0);
        assert_eq!(watch.deadline(&LIMITS), (35.0, Due::Write));
        watch.sent(10.0, true);
        watch.closing_since = 11.0;
        assert_eq!(watch.deadline(&LIMITS), (40.0, Due::Write));
        watch.sent(12.0, false);
        assert_eq!(watch.deadline(&LIMITS), (14.0, Due::Linger));
    }
}
