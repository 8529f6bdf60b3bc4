//! Runs every case, whatever became of the one before, and tells how many there were.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) struct Corpus {
    name: &'static str,
    ran: usize,
    failed: Vec<String>,
}

impl Corpus {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            ran: 0,
            failed: Vec::new(),
        }
    }

    /// `run` panics if the case does not hold.
    pub(crate) fn case(&mut self, case: &str, run: impl FnOnce()) {
        self.ran += 1;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied());
            self.failed
                .push(format!("{case}: {}", said.unwrap_or("a panic")));
        }
    }

    pub(crate) fn finish(self) {
        let passed = self.ran - self.failed.len();
        // Past the test harness, which swallows what passing tests print.
        let line = format!("{}: {passed} of {} cases passed\n", self.name, self.ran);
        std::io::stderr()
            .write_all(line.as_bytes())
            .expect("stderr");
        assert!(self.failed.is_empty(), "{}", self.failed.join("\n"));
    }
}
