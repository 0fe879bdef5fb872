//! Log lines on stderr.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use crate::host::time::rfc3339;

/// Lines that gRPC's C core may write in each [`PERIOD`]: anybody who connects can make it write one.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// Starts the log; to be called once.
pub fn start(level: log::LevelFilter) {
    let grpc = Mutex::new(Allowance::default());
    env_logger::Builder::new()
        .filter_level(level)
        // Its accept thread ends by design, and would call that an error (server/inner.rs).
        .filter_module("tiny_http", log::LevelFilter::Off)
        // At debug level gRPC tells of every step.
        .filter_module("grpcio", level.min(log::LevelFilter::Warn))
        .format(move |out, record| {
            let mut left_out = 0;
            if record.module_path().is_some_and(|m| m.starts_with("grpcio")) {
                let mut allowance = grpc.lock().unwrap_or_else(|e| e.into_inner());
                match allowance.take(Instant::now()) {
                    Some(n) => left_out = n,
                    None => return Ok(()),
                }
            }
            let now = rfc3339(SystemTime::now());
            if left_out > 0 {
                writeln!(out, "{now} WARN  gRPC: {left_out} more lines were left out")?;
            }
            writeln!(out, "{now} {:5} {}", record.level(), record.args())
        })
        .init();
}

/// How many lines may still be written.
#[derive(Default)]
struct Allowance {
    since: Option<Instant>,
    taken: u32,
}

impl Allowance {
    /// `None` if a line may not be written, else how many were not before it.
    fn take(&mut self, now: Instant) -> Option<u32> {
        let mut left_out = 0;
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            left_out = self.taken.saturating_sub(LINES);
            *self = Self { since: Some(now), taken: 0 };
        }
        self.taken = self.taken.saturating_add(1);
        (self.taken <= LINES).then_some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_left_out_and_told() {
        let begin = Instant::now();
        let mut allowance = Allowance::default();
        let taken: Vec<_> = (0..LINES + 5).map(|_| allowance.take(begin)).collect();
        assert!(taken[..LINES as usize].iter().all(|t| *t == Some(0)));
        assert!(taken[LINES as usize..].iter().all(Option::is_none));
        assert_eq!(allowance.take(begin + PERIOD), Some(5));
        assert_eq!(allowance.take(begin + PERIOD), Some(0));
        assert_eq!(allowance.take(begin + 3 * PERIOD), Some(0));
    }
}
