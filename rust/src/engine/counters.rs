//! What a reactor has counted: cheap enough to be kept always.

/// Buckets of the latency histogram: bucket `n` counts what took less than 2^n microseconds.
pub const HISTOGRAM: usize = 24;

/// Sums over all streams of one reactor, those that are gone included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Streams that were opened.
    pub opened: u64,
    /// Streams that are closed again.
    pub closed: u64,
    /// Bytes that came.
    pub received: u64,
    /// Bytes that the kernel took.
    pub sent: u64,
    /// Messages that were handed to a handler.
    pub messages: u64,
    /// Streams that the peer reset.
    pub resets: u64,
    /// Streams that the system ended otherwise.
    pub failures: u64,
    /// Streams whose input was no message.
    pub malformed: u64,
    /// Deadlines that fell due on a stream.
    pub overdue: u64,
    /// From reading to having handled and answered: batches of messages by the time they took.
    pub latency: [u64; HISTOGRAM],
    /// The sum of those times, in microseconds.
    pub taken: u64,
}

impl Counters {
    /// A batch of messages took so many seconds.
    #[inline]
    pub fn took(&mut self, seconds: f64) {
        let microseconds = (seconds * 1e6) as u64;
        self.taken += microseconds;
        let bucket = (64 - microseconds.leading_zeros()) as usize;
        self.latency[bucket.min(HISTOGRAM - 1)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_counts_what_took_less_than_its_power_of_two() {
        let mut counters = Counters::default();
        counters.took(0.000_000_5);
        counters.took(0.000_003);
        counters.took(0.000_004);
        counters.took(3600.0);
        assert_eq!(counters.taken, 3_600_000_007);
        assert_eq!(counters.latency[0], 1);
        assert_eq!(counters.latency[2], 1);
        assert_eq!(counters.latency[3], 1);
        assert_eq!(counters.latency[HISTOGRAM - 1], 1);
    }
}
