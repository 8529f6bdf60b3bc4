//! The connection (bodies follow).
use super::{Config, ConnectionError, Event, OpenRefused, StreamId};

pub struct Connection {
    output: Vec<u8>,
}

#[allow(unused_variables)]
impl Connection {
    /// Queues the preface (client), our SETTINGS and the connection's WINDOW_UPDATE as output.
    pub fn new(config: Config) -> Self {
        Self { output: Vec::new() }
    }
    /// Takes bytes from the peer, in any chunking. After an error the connection is dead.
    /// With empty input it only delivers events that waited (`Opened`).
    pub fn receive(
        &mut self,
        input: &[u8],
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ConnectionError> {
        unimplemented!()
    }
    /// Client: a CONNECT to `authority`, without END_STREAM.
    pub fn open(
        &mut self,
        authority: &str,
        headers: &[(&str, &str)],
    ) -> Result<StreamId, OpenRefused> {
        unimplemented!()
    }
    pub fn respond(&mut self, id: StreamId, status: u16, headers: &[(&str, &str)], end: bool) {
        unimplemented!()
    }
    /// Payload bytes that may go now. 0: wait for SendReady (or the stream is no longer open for sending).
    pub fn send_room(&self, id: StreamId) -> usize {
        unimplemented!()
    }
    /// Whether the stream is still open in our direction.
    pub fn may_send(&self, id: StreamId) -> bool {
        unimplemented!()
    }
    pub fn max_frame_send(&self) -> usize {
        unimplemented!()
    }
    pub fn data(&mut self, id: StreamId, len: usize, end: bool) -> [u8; 9] {
        unimplemented!()
    }
    pub fn reset(&mut self, id: StreamId, code: u32) {
        unimplemented!()
    }
    pub fn consumed(&mut self, id: StreamId, len: usize) {
        unimplemented!()
    }
    pub fn ping(&mut self, payload: u64) {
        unimplemented!()
    }
    pub fn go_away(&mut self, code: u32) {
        unimplemented!()
    }
    /// To be called once a second: refills the budgets for PING, RST_STREAM and the like.
    pub fn tick(&mut self) {
        unimplemented!()
    }
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }
    pub fn open_streams(&self) -> usize {
        unimplemented!()
    }
    pub fn may_open(&self) -> bool {
        unimplemented!()
    }
    /// Both directions are closed.
    pub fn is_finished(&self, id: StreamId) -> bool {
        unimplemented!()
    }
}
