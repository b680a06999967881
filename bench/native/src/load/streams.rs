//! The two loops over streams.
//!
//! A *closed* loop sends the next message when an answer has come, so it finds out how much a server can do, and
//! its latencies say little: a slow server is asked less.  An *open* loop sends at a fixed rate, whatever the server
//! does, and counts each latency from the moment at which the message was due, so that a pause of the server is seen
//! in every message that it made late, as a user would see it.

use std::io;
use std::time::Duration;

use crate::load::exchange::{Exchange, Target};
use crate::load::measurement::{Measurement, Plan};

/// Between two looks at the clock when nothing happens.
const TICK: Duration = Duration::from_millis(50);
/// A gap shorter than this is spent looking for answers, since epoll_wait(2) counts milliseconds.
const SHORTEST_SLEEP: u64 = 2_000_000;

/// Keep `depth` messages in flight on each of so many connections.
pub fn closed(target: &Target, connections: usize, depth: usize, plan: Plan) -> io::Result<Measurement> {
    let mut measurement = Measurement::new(plan)?;
    let mut exchange = opened(target, connections, &mut measurement)?;
    for number in 0..connections {
        exchange.send(number, depth, measurement.now())?;
    }
    while !measurement.is_over(measurement.now())? {
        exchange.turn(TICK, &mut measurement, true)?;
    }
    Ok(measurement)
}

/// Send `rate` messages a second, spread evenly over time and over so many connections.
pub fn open(target: &Target, connections: usize, rate: f64, plan: Plan) -> io::Result<Measurement> {
    let mut measurement = Measurement::new(plan)?;
    let mut exchange = opened(target, connections, &mut measurement)?;
    let begin = measurement.now();
    let due_at = |number: u64| begin + (number as f64 * 1e9 / rate) as u64;
    let mut number = 0;
    loop {
        let now = measurement.now();
        if measurement.is_over(now)? {
            return Ok(measurement);
        }
        while due_at(number) <= now {
            exchange.send((number % connections as u64) as usize, 1, due_at(number))?;
            number += 1;
        }
        let gap = due_at(number).saturating_sub(measurement.now());
        let pause = if gap < SHORTEST_SLEEP { 0 } else { gap - SHORTEST_SLEEP / 2 };
        exchange.turn(Duration::from_nanos(pause).min(TICK), &mut measurement, false)?;
    }
}

/// Connections on which one message has been answered, so that accepting and TLS handshakes are over when the warm-up
/// begins.
fn opened<'a>(target: &'a Target, connections: usize, measurement: &mut Measurement) -> io::Result<Exchange<'a>> {
    let mut exchange = Exchange::open(target, connections)?;
    for number in 0..connections {
        exchange.send(number, 1, measurement.now())?;
    }
    while exchange.unanswered() > 0 {
        exchange.turn(TICK, measurement, false)?;
    }
    measurement.restart();
    Ok(exchange)
}
