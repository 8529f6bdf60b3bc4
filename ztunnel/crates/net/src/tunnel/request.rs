//! A CONNECT and its answer, in both roles.
//!
//! Owns what becomes of a request, what is sent along with it, and when the answer goes.

use std::io;
use std::rc::Rc;
use std::task::Poll;

use ztunnel_core::h2::{Connection, Headers, OpenRefused, StreamId};

use super::first::Speaker;
use super::stream::{Stream, StreamState};
use super::{OUTBOX_LIMIT, State, Tunnel};

/// Why a request on a tunnel came to nothing.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The tunnel takes no more streams; nothing was sent.
    Full,
    /// The peer did not process the request. `String`: why.
    Unanswered(String),
    /// The tunnel died with the request unanswered. `String`: why.
    Lost(String),
    /// The client has gone meanwhile.
    App(io::Error),
    Reset(u32),
    Status(u16),
}

impl Tunnel {
    /// CONNECT and its answer. Ok: the peer said 200; with how much of the client's first words it has been told.
    pub(crate) async fn request(
        self: &Rc<Self>,
        authority: &str,
        headers: &[(&str, &str)],
        speaker: Option<&mut Speaker<'_>>,
    ) -> Result<(Stream, Headers, usize), RequestError> {
        if let Some(why) = &*self.dead.borrow() {
            return Err(RequestError::Unanswered(why.to_string()));
        }
        let opened = self.state.borrow_mut().h2.open(authority, headers);
        let id = opened.map_err(|why| match why {
            OpenRefused::TooManyStreams => RequestError::Full,
            other => RequestError::Unanswered(other.to_string()),
        })?;
        let stream = self.admit(id);
        self.touch();
        // Not to a stranger, and not before the peer has accepted our certificate.
        let mut speaker = speaker.filter(|s| self.is_introduced() && s.to == self.peer);
        let mut told = 0;
        let answer = std::future::poll_fn(|cx| {
            let answer = stream.poll_answer(cx);
            if answer.is_pending()
                && let Some(speaker) = &mut speaker
                && let Err(why) = speaker.speak(cx, &stream, &mut told)
            {
                return Poll::Ready(Err(RequestError::App(why)));
            }
            answer
        });
        let answer = match answer.await {
            Ok((200, headers)) => return Ok((stream, headers, told)),
            Ok((status, _)) => RequestError::Status(status),
            Err(why) => why,
        };
        if let (RequestError::Status(_) | RequestError::Unanswered(_), Some(speaker)) =
            (&answer, speaker)
        {
            speaker.unheard();
        }
        Err(answer)
    }

    /// Sends `bytes` as far as there is room. Returns how many.
    pub(super) fn say(&self, id: StreamId, bytes: &[u8]) -> usize {
        let said = self.state.borrow_mut().say(id, bytes);
        match said {
            Ok(0) => 0,
            Ok(said) => {
                self.touch();
                said
            }
            Err(why) => {
                self.die(&why);
                0
            }
        }
    }

    pub(super) fn admit(self: &Rc<Self>, id: StreamId) -> Stream {
        let state = StreamState::new(id);
        self.streams.borrow_mut().insert(id, state.clone());
        Stream {
            tunnel: self.clone(),
            state,
        }
    }

    pub(super) fn respond(&self, id: StreamId, status: u16, headers: &[(&str, &str)], end: bool) {
        self.state.borrow_mut().h2.respond(id, status, headers, end);
        self.touch();
    }

    /// Answers 200 with the next thing that is sent.
    pub(super) fn respond_patiently(&self, id: StreamId, headers: &[(&str, &str)]) {
        self.patiently(|h2| h2.respond(id, 200, headers, false));
    }

    /// Ends a stream that the peer has ended, with the next thing that is sent.
    pub(super) fn end_patiently(&self, id: StreamId) {
        self.patiently(|h2| {
            let end = h2.data(id, 0, true);
            h2.output().extend_from_slice(&end);
        });
    }

    /// What `put` puts into the output goes with the next thing that is sent; the driver sees that it does not wait long.
    fn patiently(&self, put: impl FnOnce(&mut Connection)) {
        let mut state = self.state.borrow_mut();
        let all_can_wait = state.is_patient();
        put(&mut state.h2);
        if all_can_wait {
            state.patient = state.h2.output().len();
        }
        drop(state);
        self.touch();
    }
}

impl State {
    /// All that waits can wait, be it nothing.
    pub(super) fn is_patient(&mut self) -> bool {
        self.h2.output().len() == self.patient && self.outbox.is_empty()
    }

    /// One DATA frame.
    fn say(&mut self, id: StreamId, bytes: &[u8]) -> Result<usize, String> {
        let most = bytes.len().min(self.h2.max_frame_send());
        if most == 0 || self.outbox.unsent() >= OUTBOX_LIMIT {
            return Ok(0);
        }
        let len = self.h2.send_room(id).min(most);
        if len > 0 {
            self.collect()?;
            let head = self.h2.data(id, len, false);
            self.outbox.push(&head)?;
            self.outbox.push(&bytes[..len])?;
        }
        Ok(len)
    }
}
