//! What a client says before the peer has answered its CONNECT. It is sent along, which saves a short exchange one round trip
//! and two packets (RFC 9110 §9.3.6 leaves it to the client), and kept, so that it can be said again elsewhere.
//!
//! Owns what may be said early, to whom, and whether it may be repeated: never once an application may have heard it.

use std::io::{self, IoSliceMut, Read};
use std::task::Context;

use socket2::SockRef;
use tokio::net::TcpStream;
use ztunnel_core::ids::SpiffeId;

use super::forward::read_once;
use super::stream::Stream;

/// Bytes that are said before the answer.
const MOST: usize = 4 << 10;

/// Of one client, over all attempts to reach somebody for it.
#[derive(Default)]
pub struct FirstWords {
    said: Vec<u8>,
    heard: bool,
    listened: bool,
}

impl FirstWords {
    /// No application has heard any of it.
    pub fn may_be_repeated(&self) -> bool {
        !self.heard
    }

    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.said)
    }
}

/// One attempt. `to`: who may hear it; nothing is said to anybody else.
pub struct Speaker<'a> {
    pub app: &'a TcpStream,
    pub words: &'a mut FirstWords,
    pub to: SpiffeId,
}

impl Speaker<'_> {
    /// Says what there is; the task is woken when there is more. `told`: how much this stream has been told.
    /// Err: the client broke the connection.
    pub(super) fn speak(
        &mut self,
        cx: &mut Context<'_>,
        stream: &Stream,
        told: &mut usize,
    ) -> io::Result<()> {
        loop {
            let accepted = stream.say(&self.words.said[*told..]);
            self.words.heard |= accepted > 0;
            *told += accepted;
            let room = MOST - self.words.said.len();
            if *told < self.words.said.len() || room == 0 || !self.listen(cx, room)? {
                return Ok(());
            }
        }
    }

    /// False: nothing has come; also at the client's end, which is the relay's to pass on.
    fn listen(&mut self, cx: &mut Context<'_>, room: usize) -> io::Result<bool> {
        // tokio knows nothing yet of a socket that has just been registered, and most clients have spoken by then.
        let at_once = !std::mem::replace(&mut self.words.listened, true);
        if !at_once && self.app.poll_read_ready(cx).is_pending() {
            return Ok(false);
        }
        let mut heard = [0; MOST];
        let read = match at_once {
            true => (&*SockRef::from(self.app)).read(&mut heard[..room]),
            false => read_once(self.app, &mut [IoSliceMut::new(&mut heard[..room])]),
        };
        match read {
            Ok(read) => {
                self.words.said.extend_from_slice(&heard[..read]);
                Ok(read > 0)
            }
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => self.listen(cx, room),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => self.listen(cx, room),
            Err(why) => {
                self.words.heard = true; // there is nobody left to say it for
                Err(why)
            }
        }
    }

    pub fn may_repeat(&self) -> bool {
        self.words.may_be_repeated()
    }

    /// The peer did certainly not pass anything on.
    pub(super) fn unheard(&mut self) {
        self.words.heard = false;
    }
}
