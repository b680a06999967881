//! A measurement: when it begins and ends, and its figures.

use std::io;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::clock::{Clock, own_processor_time, processor_time};

/// A latency above this, an hour, counts as this.
const LONGEST: u64 = 3_600_000_000_000;

/// How long to measure, and whom.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Nanoseconds before the measurement.
    pub warmup: u64,
    /// Nanoseconds of the measurement, at most.
    pub duration: u64,
    /// Messages of the measurement, at most.
    pub messages: u64,
    /// The server's process, whose processor time is read.
    pub server: Option<i32>,
}

/// A moment at an edge of the measurement.
#[derive(Clone, Copy)]
struct Edge {
    time: u64,
    server: Option<u64>,
    own: u64,
}

/// What is counted between the two edges.
pub struct Measurement {
    plan: Plan,
    clock: Clock,
    warm: u64,
    begin: Option<Edge>,
    end: Option<Edge>,
    messages: u64,
    lost: u64,
    latencies: Histogram<u64>,
}

impl Measurement {
    /// A measurement whose warm-up begins now.
    pub fn new(plan: Plan) -> io::Result<Self> {
        let latencies = Histogram::new_with_bounds(1, LONGEST, 3).map_err(io::Error::other)?;
        let clock = Clock::start();
        let warm = clock.now() + plan.warmup;
        Ok(Self { plan, clock, warm, begin: None, end: None, messages: 0, lost: 0, latencies })
    }

    /// Nanoseconds since the warm-up began.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Let the warm-up begin now, for instance as all connections are open only now.
    pub fn restart(&mut self) {
        self.warm = self.now() + self.plan.warmup;
    }

    /// A message was answered, or sent where none is answered, after so many nanoseconds.
    pub fn count(&mut self, latency: u64) {
        self.messages += 1;
        self.latencies.saturating_record(latency);
    }

    /// Messages were sent that need no answer.
    pub fn count_sent(&mut self, messages: u64) {
        self.messages += messages;
    }

    /// Messages will have no answer any more.
    pub fn count_lost(&mut self, messages: u64) {
        self.lost += messages;
    }

    /// Whether the warm-up is over at `now`, or the measurement has begun.
    pub fn is_warm(&self, now: u64) -> bool {
        now >= self.warm
    }

    /// Whether the measurement is over; this also begins and ends it, so it is asked once in every turn.
    pub fn is_over(&mut self, now: u64) -> io::Result<bool> {
        match self.begin {
            None if self.is_warm(now) => self.begin()?,
            Some(begin) if now >= begin.time + self.plan.duration || self.messages >= self.plan.messages => {
                self.end()?;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Begin to measure.
    pub fn begin(&mut self) -> io::Result<()> {
        self.messages = 0;
        self.lost = 0;
        self.latencies.reset();
        self.begin = Some(self.edge()?);
        Ok(())
    }

    /// Stop measuring.
    pub fn end(&mut self) -> io::Result<()> {
        self.end = Some(self.edge()?);
        Ok(())
    }

    fn edge(&self) -> io::Result<Edge> {
        let server = self.plan.server.map(processor_time).transpose();
        let server = server.map_err(|error| io::Error::new(error.kind(), format!("the server's process: {error}")))?;
        Ok(Edge { time: self.now(), server, own: own_processor_time() })
    }

    /// The figures: times in seconds or nanoseconds as their names say.
    pub fn report(&self) -> Value {
        let (Some(begin), Some(end)) = (self.begin, self.end) else { return json!({}) };
        let seconds = (end.time - begin.time) as f64 / 1e9;
        let messages = self.messages as f64;
        let server = begin.server.zip(end.server).map(|(before, after)| after.saturating_sub(before));
        json!({
            "seconds": seconds,
            "messages": self.messages,
            "lost": self.lost,
            "rate": messages / seconds,
            "server_cpu_ns": server,
            "server_cpu_ns_per_message": server.map(|time| time as f64 / messages),
            "load_cpu_ns": end.own - begin.own,
            "latency_ns": self.latency(),
        })
    }

    fn latency(&self) -> Value {
        if self.latencies.is_empty() {
            return Value::Null;
        }
        json!({
            "p50": self.latencies.value_at_quantile(0.5),
            "p90": self.latencies.value_at_quantile(0.9),
            "p99": self.latencies.value_at_quantile(0.99),
            "p99.9": self.latencies.value_at_quantile(0.999),
            "max": self.latencies.max(),
            "mean": self.latencies.mean(),
        })
    }
}
