//! The load generator: asks a server as much as it is told to, checks every answer, and prints one JSON object.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use longshore_bench::address::Address;
use longshore_bench::load::channel::Trust;
use longshore_bench::load::exchange::Target;
use longshore_bench::load::measurement::{Measurement, Plan};
use longshore_bench::load::tape::{Framing, Tape};
use longshore_bench::load::{churn, datagrams, idle, streams};
use serde_json::json;

/// Load a server that echoes, check its answers, and print the figures as JSON.
#[derive(Parser)]
#[command(name = "load", subcommand_required = true)]
struct Command {
    #[command(subcommand)]
    way: Way,
}

#[derive(Subcommand)]
enum Way {
    /// Closed loop: a number of messages in flight on each connection
    Closed {
        #[command(flatten)]
        options: Options,
        /// Messages in flight on each connection
        #[arg(short, long, default_value_t = 1, value_parser = at_least_one)]
        depth: usize,
    },
    /// Open loop: messages at a fixed rate, with latencies from when each was due
    Open {
        #[command(flatten)]
        options: Options,
        /// Messages a second, over all connections
        #[arg(short, long, value_parser = positive)]
        rate: f64,
    },
    /// Short connections: connect, one message, its answer, close
    Churn {
        #[command(flatten)]
        options: Options,
    },
    /// Open connections, say so, and hold them until the standard input ends
    Idle {
        #[command(flatten)]
        options: Options,
    },
    /// Datagrams that nobody answers
    Ingest {
        #[command(flatten)]
        options: Options,
        /// Datagrams a second; as many as can be sent by default
        #[arg(short, long, value_parser = positive)]
        rate: Option<f64>,
        /// Instead, stop the process of --pid while so many datagrams come, and measure how it takes them
        #[arg(short, long, conflicts_with = "rate", requires = "pid", value_parser = at_least_one)]
        burst: Option<usize>,
    },
}

#[derive(Args)]
struct Options {
    /// The server: tcp://host:port, tls://host:port, udp://host:port or unix:///path
    address: Address,
    /// Connections, or sockets of datagrams
    #[arg(short, long, default_value_t = 1, value_parser = at_least_one)]
    connections: usize,
    /// Bytes of a message, framing included
    #[arg(short, long, default_value_t = 64, value_parser = at_least_one)]
    size: usize,
    /// What a message looks like: raw, lines or length-prefixed
    #[arg(short, long, default_value = "lines")]
    framing: Framing,
    /// Seconds to measure
    #[arg(short = 't', long, default_value_t = 1.0, value_parser = positive)]
    duration: f64,
    /// Seconds before that
    #[arg(short, long, default_value_t = 0.2)]
    warmup: f64,
    /// Messages to measure, if that comes before the end of the duration
    #[arg(short = 'n', long, default_value_t = u64::MAX)]
    messages: u64,
    /// The server's process, whose processor time is read (with that of its children)
    #[arg(short, long)]
    pid: Option<i32>,
    /// Certificates to trust on tls://, a PEM file
    #[arg(long)]
    ca: Option<PathBuf>,
    /// The name that the server's certificate must have
    #[arg(long, default_value = "localhost")]
    server_name: String,
}

impl Options {
    fn plan(&self) -> Plan {
        Plan {
            warmup: (self.warmup * 1e9) as u64,
            duration: (self.duration * 1e9) as u64,
            messages: self.messages,
            server: self.pid,
        }
    }

    fn target(&self) -> io::Result<Target> {
        let trust = match (&self.address, &self.ca) {
            (Address::Tls(_), Some(path)) => Some(Trust::from_pem(path, &self.server_name).map_err(io::Error::other)?),
            (Address::Tls(_), None) => return Err(io::Error::other("tls:// needs --ca FILE")),
            (Address::Udp(_), _) => return Err(io::Error::other("udp:// is loaded by `closed` and `ingest` only")),
            _ => None,
        };
        let tape = Tape::new(self.framing, self.size).map_err(io::Error::other)?;
        Ok(Target { address: self.address.clone(), trust, tape })
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "give a whole number from 1 on".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| *number > 0.0).ok_or_else(|| "give a number above 0".to_owned())
}

fn main() -> ExitCode {
    let way = Command::parse().way;
    let (name, options) = match &way {
        Way::Closed { options, .. } => ("closed", options),
        Way::Open { options, .. } => ("open", options),
        Way::Churn { options } => ("churn", options),
        Way::Idle { options } => ("idle", options),
        Way::Ingest { options, .. } => ("ingest", options),
    };
    match run(&way) {
        Ok(measurement) => {
            let mut report = json!({
                "way": name,
                "address": options.address.to_string(),
                "connections": options.connections,
                "size": options.size,
            });
            if let (Some(report), Some(figures)) = (report.as_object_mut(), measurement.report().as_object_mut()) {
                report.append(figures);
            }
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {}: {error}", options.address);
            ExitCode::FAILURE
        }
    }
}

fn run(way: &Way) -> io::Result<Measurement> {
    match way {
        Way::Closed { options, depth } if matches!(options.address, Address::Udp(_)) => {
            datagrams::closed(&options.address, options.connections, *depth, options.size, options.plan())
        }
        Way::Closed { options, depth } => {
            streams::closed(&options.target()?, options.connections, *depth, options.plan())
        }
        Way::Open { options, rate } => streams::open(&options.target()?, options.connections, *rate, options.plan()),
        Way::Churn { options } => churn::churn(&options.target()?, options.connections, options.plan()),
        Way::Idle { options } => idle::hold(&options.target()?, options.connections, options.plan()),
        Way::Ingest { options, burst: Some(burst), .. } => {
            datagrams::ingest_bursts(&options.address, options.size, *burst, options.plan())
        }
        Way::Ingest { options, rate, .. } => datagrams::ingest(&options.address, options.size, *rate, options.plan()),
    }
}
