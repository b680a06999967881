//! Connections that are held and say nothing.

use std::io::{self, Read, Write};
use std::time::Duration;

use serde_json::json;

use crate::load::exchange::{Exchange, Target};
use crate::load::measurement::{Measurement, Plan};

/// Open so many connections, exchange one message on each, say `{"event": "ready"}`, and hold them until the
/// standard input ends.
///
/// The message makes sure that the server has accepted, and that what it needed only for talking is part of what is
/// found, if it keeps that.
pub fn hold(target: &Target, connections: usize, plan: Plan) -> io::Result<Measurement> {
    let mut measurement = Measurement::new(Plan { messages: connections as u64, ..plan })?;
    let mut exchange = Exchange::open(target, connections)?;
    measurement.begin()?;
    for number in 0..connections {
        exchange.send(number, 1, measurement.now())?;
        exchange.turn(Duration::ZERO, &mut measurement, false)?;
    }
    while exchange.unanswered() > 0 {
        exchange.turn(Duration::from_millis(50), &mut measurement, false)?;
    }
    measurement.end()?;
    println!("{}", json!({"event": "ready", "connections": connections}));
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    // A connection that the server gave up is readable, and reading it is the error that says so.
    exchange.turn(Duration::ZERO, &mut measurement, false)?;
    Ok(measurement)
}
