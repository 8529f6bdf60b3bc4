//! Sockets towards a pod's applications, made ahead of need: going into a namespace and back costs more than making one.
//!
//! Owns how many are kept. Nobody pays for a pod that is rarely called: only who comes again soon finds some.

use crate::netns::{self, NetNs};
use socket2::Socket;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const BATCH: usize = 8;
const SOON: Duration = Duration::from_millis(100);

/// Of one pod. The sockets hold its namespace, as its `NetNs` does.
#[derive(Debug, Default)]
pub(crate) struct Ahead(Mutex<Stock>);

#[derive(Debug, Default)]
struct Stock {
    v4: Vec<Socket>,
    v6: Vec<Socket>,
    asked: Option<Instant>,
}

impl Ahead {
    /// See `netns::app_socket`. `mark` is the same in every call.
    pub(crate) fn take(&self, netns: &NetNs, family_of: IpAddr, mark: u32) -> io::Result<Socket> {
        let mut stock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before = stock.asked.replace(now);
        let ready = match family_of {
            IpAddr::V4(_) => &mut stock.v4,
            IpAddr::V6(_) => &mut stock.v6,
        };
        if let Some(socket) = ready.pop() {
            return Ok(socket);
        }
        let again = before.is_some_and(|before| now - before < SOON);
        netns.enter(|| {
            let first = netns::app_socket(family_of, mark)?;
            let more = if again { BATCH - 1 } else { 0 };
            // What does not come to be now is missed by nobody.
            ready.extend((0..more).map_while(|_| netns::app_socket(family_of, mark).ok()));
            Ok(first)
        })
    }

    #[cfg(test)]
    fn kept(&self) -> usize {
        let stock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stock.v4.len() + stock.v6.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::Ipv4Addr;
    use std::os::fd::AsFd;

    #[test]
    fn some_are_made_for_who_comes_again_soon_and_used_up_first() {
        let here = File::open("/proc/self/ns/net").expect("procfs");
        let netns = NetNs::of(here.as_fd()).expect("a namespace");
        let (ahead, v4) = (Ahead::default(), IpAddr::from(Ipv4Addr::LOCALHOST));
        let Ok(_first) = ahead.take(&netns, v4, 0) else {
            return; // who may not enter a namespace makes none
        };
        assert_eq!(ahead.kept(), 0);
        let mut kept = Vec::new();
        for _ in 0..BATCH {
            ahead.take(&netns, v4, 0).expect("a socket");
            kept.push(ahead.kept());
        }
        assert_eq!(kept, (0..BATCH).rev().collect::<Vec<_>>());
    }
}
