//! Clocks: what time it is, and how much processor time a server has used.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Instant;

/// Nanoseconds since a fixed moment of this process.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Processor time, user and system, of a process and everything that descends from it, in nanoseconds.
///
/// The kernel's clock of a process counts all its threads, those that have ended too, to the nanosecond, and includes
/// the slice that is running now; `/proc/PID/stat` counts ticks of ten milliseconds.  Children that have ended and
/// were waited for are only there, so they are added from it.
pub fn processor_time(pid: i32) -> io::Result<u64> {
    let mut total = 0;
    for process in family(pid)? {
        match process_clock(process) {
            Ok(time) => total += time + ended_children(process).unwrap_or(0),
            // A child that has ended since it was listed is counted by its parent from now on.
            Err(_) if process != pid => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// Processor time of this process in nanoseconds.
pub fn own_processor_time() -> u64 {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0)
}

fn process_clock(pid: i32) -> io::Result<u64> {
    let mut id: libc::clockid_t = 0;
    // SAFETY: `id` is a valid place for the answer.
    match unsafe { libc::clock_getcpuclockid(pid, &raw mut id) } {
        0 => read_clock(id),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn read_clock(id: libc::clockid_t) -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    if unsafe { libc::clock_gettime(id, &raw mut time) } == 0 {
        Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The process and all its living descendants.
fn family(pid: i32) -> io::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::from([pid]);
    let mut unseen = vec![pid];
    while let Some(process) = unseen.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|word| word.parse().ok()) {
                if found.insert(child) {
                    unseen.push(child);
                }
            }
        }
    }
    Ok(found)
}

fn ended_children(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // SAFETY: sysconf only reads a number.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Some(children_ticks(&stat)? * (1_000_000_000 / ticks_per_second))
}

/// `cutime` + `cstime` of proc_pid_stat(5): its 16th and 17th fields; the second is a name that may hold spaces.
fn children_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(13);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_ended_children_is_found_behind_a_name_with_spaces() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 10 0 0 0 1 2 30 12 20 0 1 0 5 6 7";
        assert_eq!(children_ticks(stat), Some(42));
    }

    #[test]
    fn the_own_process_has_used_some_time() {
        let before = own_processor_time();
        let busy: u64 = (0..1_000_000).fold(0, |sum, number| std::hint::black_box(sum ^ number));
        std::hint::black_box(busy);
        assert!(own_processor_time() > before);
        assert!(processor_time(std::process::id() as i32).expect("own clock") > before);
    }
}
