//! Pages handed from one socket to another without passing through this process (splice(2)).
//!
//! Owns the pipe in between, which splice needs. Worth its two calls per helping only where helpings are large.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::rc::Rc;

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::netns::check;

/// What an unprivileged process may ask for, by default (pipe(7)).
const SIZE: usize = 1 << 20;
/// Empty pipes kept per thread.
const SPARE_PIPES: usize = 4;

type Ends = Rc<[OwnedFd; 2]>;

thread_local! {
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

pub(super) struct Pipe {
    /// Reading end, writing end; shared with nobody but the spares, and with those only when it is dropped.
    ends: Ends,
    held: usize,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let ends = match SPARE.with_borrow_mut(Vec::pop) {
            Some(ends) => ends,
            None => open()?,
        };
        Ok(Self { ends, held: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Only of an empty pipe. 0: `from` has ended.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let into = self.ends[1].as_raw_fd();
        let moved = from.try_io(Interest::READABLE, || splice(from.as_raw_fd(), into, SIZE))?;
        self.held += moved;
        Ok(moved)
    }

    pub(super) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let (out, held) = (self.ends[0].as_raw_fd(), self.held);
        let moved = to.try_io(Interest::WRITABLE, || splice(out, to.as_raw_fd(), held))?;
        self.held -= moved;
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if self.held > 0 {
            return;
        }
        // At the end of a thread its spares are gone before its last connection may be.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_PIPES {
                spare.push(self.ends.clone());
            }
        });
    }
}

fn open() -> io::Result<Ends> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    // SAFETY: new, and nobody else's.
    let ends = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    // SAFETY: plain call on a descriptor that we own. If that much is not granted, the usual size works, too.
    unsafe { libc::fcntl(ends[1].as_raw_fd(), libc::F_SETPIPE_SZ, SIZE as libc::c_int) };
    Ok(Rc::new(ends))
}

fn splice(from: libc::c_int, to: libc::c_int, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: no memory of ours is involved.
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), most, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}
