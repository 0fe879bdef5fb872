//! Log lines on stderr, and texts from outside made fit for them.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use log::{Level, LevelFilter, Record};

use crate::host::time::rfc3339;

/// Lines that one place in the code may write in each [`PERIOD`], debug levels apart: many of them say what a client did,
/// and anybody who connects is one.
const LINES: u32 = 20;
/// How often [`tell_left_out`] is to be called.
pub const PERIOD: Duration = Duration::from_secs(10);
/// Most characters of a text from outside.
const CHARS: usize = 256;
/// Characters that show which lines were left out.
const HEAD: usize = 100;

/// The log's only lock: what was written lately, by place.
static PLACES: Mutex<Option<HashMap<Place, Written>>> = Mutex::new(None);

/// Starts the log; to be called once.
pub fn start(level: LevelFilter) {
    env_logger::Builder::new()
        // The level is log's own, which can change.
        .filter_level(LevelFilter::Trace)
        // Its accept thread ends by design, and would call that an error (server/inner.rs).
        .filter_module("tiny_http", LevelFilter::Off)
        // At debug level gRPC tells of every step.
        .filter_module("grpcio", LevelFilter::Warn)
        .format(|out, record| match admit(record) {
            Some(line) => writeln!(out, "{} {:5} {line}", rfc3339(SystemTime::now()), record.level()),
            None => Ok(()),
        })
        .init();
    set_level(level);
}

/// Changes what is logged.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Says how many lines were left out in periods that are over.
pub fn tell_left_out() {
    let now = Instant::now();
    let told: Vec<String> = places().iter_mut().flat_map(HashMap::values_mut).filter_map(|w| w.left_out(now)).collect();
    told.iter().for_each(|line| log::warn!("{line}"));
}

/// A text from outside (a client, a server, a file, a name in the kernel) as it may be logged or shown: one line, without
/// what a terminal or a reader of logs takes for more than text, of at most 256 characters.
pub fn clean(text: impl fmt::Display) -> String {
    cut(&escape(&text.to_string()), CHARS)
}

/// What could end a line, steer a terminal or turn the direction of writing, escaped as in Rust.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let steers = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}');
        match steers {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// The text, its end replaced by … if it has more than `most` characters.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// Where in the code a line comes from.
type Place = (Option<&'static str>, Option<u32>);

fn places() -> MutexGuard<'static, Option<HashMap<Place, Written>>> {
    // Each change is one assignment: nothing can be half done.
    PLACES.lock().unwrap_or_else(|e| e.into_inner())
}

/// The text of a line, `None` if it may not be written.
fn admit(record: &Record) -> Option<String> {
    let text = record.args().to_string();
    // All that gRPC's C core says is of its peers.
    let of_grpc = record.module_path().is_some_and(|m| m.starts_with("grpcio"));
    let text = if of_grpc { clean(text.trim_end()) } else { escape(text.trim_end()) };
    if record.level() >= Level::Debug {
        return Some(text);
    }
    let place = if of_grpc { (Some("grpcio"), None) } else { (record.module_path_static(), record.line()) };
    let mut places = places();
    let written = places.get_or_insert_default().entry(place).or_default();
    match written.take(Instant::now(), &text)? {
        0 => Some(text),
        n => Some(format!("{text} ({n} lines like this were left out before)")),
    }
}

/// What one place in the code wrote lately.
#[derive(Debug, Default)]
struct Written {
    since: Option<Instant>,
    lines: u32,
    /// How the first line began that was left out.
    head: String,
}

impl Written {
    /// Whether one more line may be written now, and how many were not before it.
    fn take(&mut self, now: Instant, text: &str) -> Option<u32> {
        let mut left_out = 0;
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            left_out = self.lines.saturating_sub(LINES);
            *self = Self { since: Some(now), ..Self::default() };
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines == LINES + 1 {
            self.head = cut(text, HEAD);
        }
        (self.lines <= LINES).then_some(left_out)
    }

    /// What there is to say of lines that were left out, if their period is over: once.
    fn left_out(&mut self, now: Instant) -> Option<String> {
        let over = self.since.is_some_and(|since| now.saturating_duration_since(since) >= PERIOD);
        let n = self.lines.saturating_sub(LINES);
        if !over || n == 0 {
            return None;
        }
        let head = std::mem::take(self).head;
        Some(format!("{n} more lines were left out like: {head}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_left_out_and_told_once() {
        let begin = Instant::now();
        let mut written = Written::default();
        let taken: Vec<_> = (0..LINES + 5).map(|i| written.take(begin, &format!("line {i}"))).collect();
        assert!(taken[..LINES as usize].iter().all(|t| *t == Some(0)));
        assert!(taken[LINES as usize..].iter().all(Option::is_none));
        assert_eq!(written.left_out(begin), None, "its period is not over");
        assert_eq!(written.left_out(begin + PERIOD).unwrap(), "5 more lines were left out like: line 20");
        assert_eq!(written.left_out(begin + PERIOD), None);

        assert_eq!((0..LINES + 5).filter_map(|_| written.take(begin, "")).sum::<u32>(), 0);
        assert_eq!(written.take(begin + PERIOD, ""), Some(5));
        assert_eq!(written.take(begin + PERIOD, ""), Some(0));
        assert_eq!(written.take(begin + 3 * PERIOD, ""), Some(0));
    }

    #[test]
    fn a_text_from_outside_is_one_short_line() {
        assert_eq!(clean("plain \"text\" ü 猫 \\n"), "plain \"text\" ü 猫 \\n");
        let forged = "x\r\n2026-11-27T00:00:00Z ERROR\u{1b}[2J\u{9b}\0\t\u{2028}\u{202e}\u{feff}";
        assert_eq!(
            clean(forged),
            "x\\r\\n2026-11-27T00:00:00Z ERROR\\u{1b}[2J\\u{9b}\\u{0}\\t\\u{2028}\\u{202e}\\u{feff}"
        );
        for long in ["a".repeat(1 << 16), "\u{1b}".repeat(1 << 16), "猫".repeat(257)] {
            let text = clean(long);
            assert!(text.chars().count() == CHARS && text.ends_with('…'), "{text}");
        }
        assert_eq!(clean("猫".repeat(256)), "猫".repeat(256));
    }
}
