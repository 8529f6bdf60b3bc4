//! What the core has to tell: a queue with a bell. Owns the eventfd; never calls into Python and never blocks the teller.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Faults could come without end (a panic per connection); everything else is bounded by being told once.
const MOST_FAULTS: usize = 256;

/// (kind, subject, detail), as door 4 hands it over.
pub type Event = (String, String, String);

#[derive(Debug)]
pub struct Mailbox {
    waiting: Mutex<VecDeque<Event>>,
    bell: OwnedFd,
}

impl Mailbox {
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call; the result is checked before it becomes an owned descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let bell = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            waiting: Mutex::default(),
            bell,
        })
    }

    /// Readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    pub fn need_certificate(&self, identity: &str, now: bool) {
        self.tell(
            "need_certificate",
            identity,
            if now { "now" } else { "prefetch" },
        );
    }

    /// From a vault, in use now; validity in Unix seconds.
    pub fn certificate_restored(&self, identity: &str, (from, until): (f64, f64)) {
        self.tell("certificate_restored", identity, &format!("{from} {until}"));
    }

    pub fn identity_unused(&self, identity: &str) {
        self.tell("identity_unused", identity, "");
    }

    pub fn drained(&self) {
        self.tell("drained", "", "");
    }

    pub fn fault(&self, place: &str, what: &str) {
        let faults = self
            .lock()
            .iter()
            .filter(|(kind, ..)| kind == "fault")
            .count();
        if faults < MOST_FAULTS {
            self.tell("fault", place, what);
        }
    }

    /// Everything that waits, oldest first; the bell falls silent.
    pub fn take(&self) -> Vec<Event> {
        let mut waiting = self.lock();
        let mut count = [0u8; 8];
        // SAFETY: reads 8 bytes into a buffer of 8; EAGAIN (nothing rung) is as good as an answer.
        unsafe {
            libc::read(
                self.bell.as_raw_fd(),
                count.as_mut_ptr().cast(),
                count.len(),
            )
        };
        waiting.drain(..).collect()
    }

    /// The latest word on a subject counts: an equal event that waits is not repeated, and a contrary one keeps its order.
    fn tell(&self, kind: &str, subject: &str, detail: &str) {
        let event = (kind.to_owned(), subject.to_owned(), detail.to_owned());
        let mut waiting = self.lock();
        if let Some(at) = waiting.iter().position(|e| *e == event) {
            waiting.remove(at);
        }
        waiting.push_back(event);
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes 8 bytes from a buffer of 8; the counter cannot overflow between two reads in practice (2^64 - 2).
        unsafe { libc::write(self.bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(mailbox: &Mailbox) -> bool {
        let mut poll = libc::pollfd {
            fd: mailbox.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, no waiting.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn the_bell_rings_while_something_waits() {
        let mailbox = Mailbox::new().expect("eventfd");
        assert!(!rings(&mailbox));
        mailbox.drained();
        assert!(rings(&mailbox));
        assert_eq!(
            mailbox.take(),
            [("drained".into(), String::new(), String::new())]
        );
        assert!(!rings(&mailbox) && mailbox.take().is_empty());
    }

    #[test]
    fn what_waits_is_not_repeated_and_the_last_word_comes_last() {
        let mailbox = Mailbox::new().expect("eventfd");
        mailbox.need_certificate("a", true);
        mailbox.identity_unused("a");
        mailbox.need_certificate("a", true);
        let kinds: Vec<_> = mailbox.take().into_iter().map(|e| e.0).collect();
        assert_eq!(kinds, ["identity_unused", "need_certificate"]);
    }

    #[test]
    fn faults_without_end_stay_bounded() {
        let mailbox = Mailbox::new().expect("eventfd");
        for n in 0..2 * MOST_FAULTS {
            mailbox.fault("here", &n.to_string());
        }
        assert_eq!(mailbox.take().len(), MOST_FAULTS);
    }
}
