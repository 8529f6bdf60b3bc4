//! Lines of JSON or text and the thread that writes them. Whoever logs never waits: the queue is bounded, and what does not fit is
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
const GATHER: Duration = Duration::from_millis(20);

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

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    Json,
    /// For people: time, level, scope and message with tabs between, then `key=value`, in quotes where needed.
    Text,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "console" => Ok(Self::Text),
            other => Err(format!("log format {other:?} is none of console, json")),
        }
    }
}

/// Who logs; each has a level of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One line per connection.
    Access,
    /// Everything else.
    Core,
}

pub const TARGETS: [(Target, &str); 2] = [(Target::Access, "access"), (Target::Core, "core")];

/// One event: a constant phrase plus fields, on one line.
#[derive(Debug)]
pub struct Line {
    text: String,
    format: Format,
    /// The next field is the first.
    bare: bool,
}

impl Line {
    pub fn new(format: Format, level: Level, scope: &str, message: &str) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let level = LEVELS[level as usize].1;
        let mut line = Self {
            text: String::with_capacity(768),
            format,
            bare: true,
        };
        if format == Format::Text {
            _ = write!(line.text, "{}\t{level}\t{scope}\t{message}", Rfc3339(now));
            return line;
        }
        line.raw("level", format_args!("\"{level}\""))
            .raw("time", format_args!("\"{}\"", Rfc3339(now)))
            .text("scope", scope)
            .text("message", message)
    }

    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:/[]".contains(&b);
        if self.format == Format::Text && !value.is_empty() && value.bytes().all(plain) {
            self.text.push_str(value);
            return self;
        }
        self.text.push('"');
        Escaped(&mut self.text).put(value);
        self.text.push('"');
        self
    }

    pub fn maybe(self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) if !value.is_empty() => self.text(key, value),
            _ => self,
        }
    }

    /// Of a value whose text is a single word.
    pub fn show(mut self, key: &str, value: impl Display) -> Self {
        self.key(key);
        let quote = if self.format == Format::Json {
            "\""
        } else {
            ""
        };
        self.text.push_str(quote);
        _ = write!(Escaped(&mut self.text), "{value}");
        self.text.push_str(quote);
        self
    }

    pub fn number(self, key: &str, value: u64) -> Self {
        self.raw(key, format_args!("{value}"))
    }

    fn raw(mut self, key: &str, value: fmt::Arguments<'_>) -> Self {
        self.key(key);
        _ = self.text.write_fmt(value);
        self
    }

    fn key(&mut self, key: &str) {
        let first = std::mem::replace(&mut self.bare, false);
        if self.format == Format::Text {
            self.text.push(if first { '\t' } else { ' ' });
            self.text.extend([key, "="]);
            return;
        }
        self.text.push(if first { '{' } else { ',' });
        self.text.extend(["\"", key, "\":"]);
    }

    pub fn finish(mut self) -> String {
        let end = if self.format == Format::Json {
            "}\n"
        } else {
            "\n"
        };
        self.text.push_str(end);
        self.text
    }
}

/// JSON's escapes, which the text form shares: nothing in a value can end its line or its quotes.
struct Escaped<'a>(&'a mut String);

impl Escaped<'_> {
    fn put(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                c if c < ' ' || c == '\u{7f}' => _ = write!(self.0, "\\u{:04x}", u32::from(c)),
                c => self.0.push(c),
            }
        }
    }
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, value: &str) -> fmt::Result {
        self.put(value);
        Ok(())
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
    format: Format,
    /// By target.
    levels: [AtomicU8; TARGETS.len()],
    access: bool,
    dropped: std::sync::Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// `access`: "stderr", "off" or the path of a file that lines are appended to. Other lines always go to stderr.
    pub fn start(access: &str, format: Format, level: Level) -> io::Result<Self> {
        let sink: Box<dyn Write + Send> = match access {
            "stderr" | "off" => Box::new(io::stderr()),
            path => Box::new(OpenOptions::new().append(true).create(true).open(path)?),
        };
        let (queue, entries) = sync_channel(QUEUE);
        let dropped = std::sync::Arc::new(AtomicU64::new(0));
        let writer = Writer {
            entries,
            access: sink,
            format,
            dropped: dropped.clone(),
            reported: 0,
        };
        let thread = thread::Builder::new()
            .name("mesh-log".into())
            .spawn(move || writer.run())?;
        Ok(Self {
            queue,
            format,
            levels: TARGETS.map(|_| AtomicU8::new(level as u8)),
            access: access != "off",
            dropped,
            writer: Mutex::new(Some(thread)),
        })
    }

    pub fn set_level(&self, target: Target, level: Level) {
        self.levels[target as usize].store(level as u8, Ordering::Relaxed);
    }

    pub fn shows(&self, target: Target, level: Level) -> bool {
        level as u8 <= self.levels[target as usize].load(Ordering::Relaxed)
    }

    /// `fields` is asked only if somebody will read the line.
    pub fn access(&self, level: Level, message: &str, fields: impl FnOnce(Line) -> Line) {
        if self.access && self.shows(Target::Access, level) {
            let line = Line::new(self.format, level, "access", message);
            self.put(Entry::Access(fields(line).finish()));
        }
    }

    pub fn core(&self, level: Level, message: &str, fields: impl FnOnce(Line) -> Line) {
        if self.shows(Target::Core, level) {
            let line = Line::new(self.format, level, "core", message);
            self.put(Entry::Core(fields(line).finish()));
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
    format: Format,
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
            let mut taken = 0;
            for entry in batch {
                taken += 1;
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
            if open && taken < BATCH {
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
            n => Line::new(self.format, Level::Warn, "core", "log lines dropped")
                .number("count", n)
                .finish(),
        }
    }
}

#[cfg(test)]
mod tests;
