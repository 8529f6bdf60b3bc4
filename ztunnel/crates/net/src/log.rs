//! Lines of JSON and the thread that writes them. Whoever logs never waits: the queue is bounded, and what does not fit is
//! counted and reported instead. Which line says what is the caller's business.

use std::fmt::{self, Display, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const QUEUE: usize = 10_000;
/// Lines per write(2), at most.
const BATCH: usize = 512;
/// After a write the thread sleeps: a thread that waited in the queue would have to be woken for every single line, which
/// costs the workers more than the lines themselves.
const GATHER: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

const LEVELS: [(Level, &str); 5] = [
    (Level::Error, "error"),
    (Level::Warn, "warn"),
    (Level::Info, "info"),
    (Level::Debug, "debug"),
    (Level::Trace, "trace"),
];

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = LEVELS.iter().find(|(_, name)| *name == text);
        found
            .map(|(level, _)| *level)
            .ok_or_else(|| format!("log level {text:?} is none of error, warn, info, debug, trace"))
    }
}

/// One event: a constant phrase plus fields, as one JSON object on one line.
#[derive(Debug)]
pub struct Line(String);

impl Line {
    pub fn new(level: Level, scope: &str, message: &str) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let line = Self(String::with_capacity(640))
            .raw("level", format_args!("\"{}\"", LEVELS[level as usize].1));
        line.raw("time", format_args!("\"{}\"", Rfc3339(now)))
            .text("scope", scope)
            .text("message", message)
    }

    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        self.0.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                c if c < ' ' => _ = write!(self.0, "\\u{:04x}", u32::from(c)),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }

    pub fn maybe(self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) if !value.is_empty() => self.text(key, value),
            _ => self,
        }
    }

    pub fn show(self, key: &str, value: impl Display) -> Self {
        self.text(key, &value.to_string())
    }

    pub fn number(self, key: &str, value: u64) -> Self {
        self.raw(key, format_args!("{value}"))
    }

    fn raw(mut self, key: &str, value: fmt::Arguments<'_>) -> Self {
        self.key(key);
        _ = self.0.write_fmt(value);
        self
    }

    fn key(&mut self, key: &str) {
        let before = if self.0.is_empty() { '{' } else { ',' };
        _ = write!(self.0, "{before}\"{key}\":");
    }

    fn finish(mut self) -> String {
        self.0.push_str("}\n");
        self.0
    }
}

/// UTC, since 1970.
pub fn rfc3339(time: Duration) -> impl Display {
    Rfc3339(time)
}

/// With microseconds. The civil date from a day number: Howard Hinnant, "chrono-compatible low-level date algorithms".
struct Rfc3339(Duration);

impl Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (
            self.0.as_secs() / 86_400 + 719_468,
            self.0.as_secs() % 86_400,
        );
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let shifted = (5 * of_year + 2) / 153; // months from March
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        let (y, d) = (
            year + era * 400 + u64::from(month <= 2),
            of_year - (153 * shifted + 2) / 5 + 1,
        );
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{y:04}-{month:02}-{d:02}T{h:02}:{m:02}:{s:02}.{:06}Z",
            self.0.subsec_micros()
        )
    }
}

enum Entry {
    Access(String),
    Core(String),
    Stop,
}

#[derive(Debug)]
pub struct Log {
    queue: SyncSender<Entry>,
    level: AtomicU8,
    access: bool,
    dropped: std::sync::Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// `access`: "stderr", "off" or the path of a file that lines are appended to. Other lines always go to stderr.
    pub fn start(access: &str, level: Level) -> io::Result<Self> {
        let sink: Box<dyn Write + Send> = match access {
            "stderr" | "off" => Box::new(io::stderr()),
            path => Box::new(OpenOptions::new().append(true).create(true).open(path)?),
        };
        let (queue, entries) = sync_channel(QUEUE);
        let dropped = std::sync::Arc::new(AtomicU64::new(0));
        let writer = Writer {
            entries,
            access: sink,
            dropped: dropped.clone(),
            reported: 0,
        };
        let thread = thread::Builder::new()
            .name("mesh-log".into())
            .spawn(move || writer.run())?;
        let access = access != "off";
        Ok(Self {
            queue,
            level: AtomicU8::new(level as u8),
            access,
            dropped,
            writer: Mutex::new(Some(thread)),
        })
    }

    pub fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    pub fn shows(&self, level: Level) -> bool {
        level as u8 <= self.level.load(Ordering::Relaxed)
    }

    /// `line` is built only if somebody will read it.
    pub fn access(&self, level: Level, line: impl FnOnce() -> Line) {
        if self.access && self.shows(level) {
            self.put(Entry::Access(line().finish()));
        }
    }

    pub fn core(&self, level: Level, message: &str, fields: impl FnOnce(Line) -> Line) {
        if self.shows(level) {
            self.put(Entry::Core(
                fields(Line::new(level, "core", message)).finish(),
            ));
        }
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes what waits and ends the thread. Idempotent.
    pub fn close(&self) {
        let thread = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // Waits for room at worst; fails only if the writer has ended already.
            let _ = self.queue.send(Entry::Stop);
            let _ = thread.join();
        }
    }

    fn put(&self, entry: Entry) {
        if self.queue.try_send(entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    entries: Receiver<Entry>,
    access: Box<dyn Write + Send>,
    dropped: std::sync::Arc<AtomicU64>,
    reported: u64,
}

impl Writer {
    fn run(mut self) {
        let (mut access, mut core) = (String::new(), String::new());
        let mut open = true;
        while open {
            let Ok(first) = self.entries.recv() else {
                return;
            };
            let batch = std::iter::once(first).chain(self.entries.try_iter().take(BATCH - 1));
            for entry in batch {
                match entry {
                    Entry::Access(line) => access.push_str(&line),
                    Entry::Core(line) => core.push_str(&line),
                    Entry::Stop => open = false,
                }
            }
            core.push_str(&self.confess());
            // A full disk or a closed stderr must not end the tunnel; there is nowhere left to say so.
            let _ = io::stderr().write_all(core.as_bytes());
            let _ = self.access.write_all(access.as_bytes());
            access.clear();
            core.clear();
            if open {
                thread::sleep(GATHER);
            }
        }
    }

    fn confess(&mut self) -> String {
        let dropped = self.dropped.load(Ordering::Relaxed);
        let news = dropped - self.reported;
        self.reported = dropped;
        match news {
            0 => String::new(),
            n => Line::new(Level::Warn, "core", "log lines dropped")
                .number("count", n)
                .finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_valid_json_whatever_its_fields_hold() {
        let line = Line::new(Level::Info, "access", "connection complete")
            .text("error", "a \"b\"\n\\é")
            .number("bytes_sent", 7);
        let read: serde_json::Value = serde_json::from_str(&line.finish()).expect("JSON");
        assert_eq!(read["error"], "a \"b\"\n\\é");
        assert_eq!(
            (&read["level"], &read["scope"], &read["bytes_sent"]),
            (&"info".into(), &"access".into(), &7.into())
        );
    }

    #[test]
    fn dates_are_civil() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(Rfc3339(Duration::from_secs(second)).to_string(), text);
        }
    }

    #[test]
    fn lines_reach_a_file_in_order_and_levels_filter() {
        let path = std::env::temp_dir().join(format!("mesh-log-{}", std::process::id()));
        let log = Log::start(path.to_str().expect("UTF-8"), Level::Warn).expect("writable");
        for (level, text) in [
            (Level::Warn, "one"),
            (Level::Info, "hidden"),
            (Level::Error, "two"),
        ] {
            log.access(level, || Line::new(level, "access", text));
        }
        log.close();
        let written = std::fs::read_to_string(&path).expect("written");
        std::fs::remove_file(&path).expect("ours");
        let read: Vec<serde_json::Value> = written
            .lines()
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect();
        assert_eq!(
            read.iter()
                .map(|l| l["message"].as_str())
                .collect::<Vec<_>>(),
            [Some("one"), Some("two")]
        );
    }
}
