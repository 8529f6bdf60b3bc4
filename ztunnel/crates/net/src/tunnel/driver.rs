//! The task that moves a tunnel's bytes and watches its health. One per tunnel, on the thread of its streams.
//!
//! Owns the timers and the end of the tunnel. Users of the tunnel only leave bytes in the outbox and wake this task; it
//! runs after everything that was ready in this turn of the event loop, so that one write carries it all.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use ztunnel_core::h2::Role;

use super::intake::{Over, Taken};
use super::{Early, Incoming, OUTBOX_LIMIT, Tunnel};
use crate::tls::Content;

/// HTTP/2's first word after the handshake.
const PREFACE: Duration = Duration::from_secs(5);
/// The budgets of the HTTP/2 engine are per second.
const TICK: Duration = Duration::from_secs(1);
/// Together with one tick of silence: a PING after ten seconds without a byte from the peer.
const SILENCE: Duration = Duration::from_secs(9);
const PING_ANSWER: Duration = Duration::from_secs(20);
/// How long what nobody waits for waits itself for something to go with: at least this, less than twice that.
const PATIENCE: Duration = Duration::from_millis(1);
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// What the timer is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Preface,
    Busy,
    Silent,
    Pinged,
}

struct Driver<'a> {
    tunnel: Rc<Tunnel>,
    on_request: &'a dyn Fn(Incoming),
    timer: Pin<Box<Sleep>>,
    watch: Watch,
    /// Runs while `patient` says what it is for: what `State::sent` was. Setting a timer wakes the event loop, so one
    /// that has become needless is left to run.
    patience: Pin<Box<Sleep>>,
    patient: Option<u32>,
    role: Role,
    pool_idle: Duration,
    /// Since when no stream is open, as far as the timer has seen.
    idle_since: Option<Instant>,
    /// Everybody who was ready has had a turn since the driver was woken.
    others_had_their_turn: bool,
}

/// The tunnel is cut if its driver is dropped.
struct Cut(Rc<Tunnel>);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.die("it was cut");
    }
}

/// Runs until the tunnel ends. Ok: in order. Dropping the future cuts the tunnel.
pub(crate) async fn drive(
    tunnel: Rc<Tunnel>,
    early: Early,
    role: Role,
    pool_idle: Duration,
    on_request: &dyn Fn(Incoming),
) -> Result<(), String> {
    let cut = Cut(tunnel.clone());
    let first = (Instant::now() + PREFACE).min(tunnel.expires);
    let mut driver = Driver {
        tunnel,
        on_request,
        timer: Box::pin(sleep_until(first)),
        watch: Watch::Preface,
        patience: Box::pin(sleep_until(first)),
        patient: None,
        role,
        pool_idle,
        idle_since: None,
        others_had_their_turn: false,
    };
    let mut over = driver.tunnel.take_early(early, on_request).err();
    if over.is_none() {
        over = Some(std::future::poll_fn(|cx| driver.poll(cx)).await);
    }
    driver.end(over, &cut)
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        match self.step(cx) {
            Ok(true) => Poll::Ready(Over::Closed),
            Ok(false) => Poll::Pending,
            Err(over) => Poll::Ready(over),
        }
    }

    /// True: everything is said and done.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        self.tunnel.driver.set(cx.waker());
        if let Some(why) = &*self.tunnel.dead.borrow() {
            return Err(Over::Broken(why.to_string()));
        }
        self.tunnel.dirty.set(true); // whatever the read leaves to send goes with the flush below
        self.read(cx)?;
        if !std::mem::replace(&mut self.others_had_their_turn, true) {
            // One connection's end and the next one's request leave in one packet: a send is the dearest call here.
            cx.waker().wake_by_ref();
            return Ok(false);
        }
        self.others_had_their_turn = false;
        let sent = self.flush(cx)?;
        self.lose_patience(cx)?;
        while self.timer.as_mut().poll(cx).is_ready() {
            self.on_timer()?;
        }
        Ok(sent
            && self.tunnel.leaving.get()
            && self.tunnel.streams.borrow().is_empty()
            && !self.tunnel.dirty.get())
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        let broken = |why: std::io::Error| Over::Broken(format!("the connection broke: {why}"));
        while let Poll::Ready(ready) = self.tunnel.tcp.poll_read_ready(cx) {
            ready.map_err(broken)?;
            if self.tunnel.take(self.on_request)? == Taken::More {
                // Others first: the applications that were just given something, and the flush below.
                cx.waker().wake_by_ref();
                break;
            }
        }
        if self.tunnel.heard.get() && matches!(self.watch, Watch::Silent | Watch::Pinged) {
            self.watch(Watch::Busy, TICK);
        }
        Ok(())
    }

    /// True: nothing waits any more.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        let tunnel = &self.tunnel;
        tunnel.dirty.set(false);
        loop {
            let sent = tunnel.flush_once()?;
            tunnel.unpark();
            if sent {
                return Ok(true);
            }
            match tunnel.tcp.poll_write_ready(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(ready) => {
                    ready.map_err(|why| Over::Broken(format!("the connection broke: {why}")))?
                }
            }
        }
    }

    /// What found no company within `PATIENCE` goes alone.
    fn lose_patience(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        loop {
            let waiting = self.tunnel.waiting();
            if self.patient.is_none() {
                if waiting.is_none() {
                    return Ok(());
                }
                self.patient = waiting;
                self.patience.as_mut().reset(Instant::now() + PATIENCE);
            }
            if self.patience.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let set_for = self.patient.take();
            if waiting.is_some() && set_for == waiting {
                self.tunnel.state.borrow_mut().patient = 0;
                self.flush(cx)?;
            }
        }
    }

    fn watch(&mut self, watch: Watch, after: Duration) {
        self.watch = watch;
        let next = (Instant::now() + after).min(self.tunnel.expires);
        self.timer.as_mut().reset(next);
    }

    fn on_timer(&mut self) -> Result<(), Over> {
        if let Some(why) = self.expired() {
            return Err(Over::Broken(why));
        }
        self.tunnel.state.borrow_mut().h2.tick();
        let heard = self.tunnel.heard.take();
        match (heard, self.watch) {
            (_, Watch::Preface) if !self.tunnel.settings_seen.get() => {
                let why = format!("no HTTP/2 preface within {PREFACE:?}");
                return Err(Over::Offence("no_preface", why));
            }
            (true, _) | (_, Watch::Preface) => self.watch(Watch::Busy, TICK),
            (false, Watch::Busy) => self.watch(Watch::Silent, SILENCE),
            (false, Watch::Silent) => {
                self.tunnel.state.borrow_mut().h2.ping(0);
                self.tunnel.touch();
                self.watch(Watch::Pinged, PING_ANSWER);
            }
            (false, Watch::Pinged) => {
                return Err(Over::Broken(format!(
                    "the peer answered no PING within {PING_ANSWER:?}"
                )));
            }
        }
        self.retire();
        Ok(())
    }

    /// Also streams that are open end with the certificates that they were opened under.
    fn expired(&self) -> Option<String> {
        let by_timer = Instant::now() >= self.tunnel.expires;
        let by_calendar = self.tunnel.lease.over();
        by_calendar.or_else(|| by_timer.then(|| "a certificate has expired".to_owned()))
    }

    /// A tunnel of ours that nobody uses takes its leave.
    fn retire(&mut self) {
        let now = Instant::now();
        if !self.tunnel.streams.borrow().is_empty() {
            self.idle_since = None;
        } else if self.role == Role::Client
            && now - *self.idle_since.get_or_insert(now) >= self.pool_idle
        {
            self.tunnel.leave();
        }
    }

    /// Says what is left to say, as far as the socket takes it at once.
    fn end(&self, over: Option<Over>, cut: &Cut) -> Result<(), String> {
        let tunnel = &cut.0;
        let orderly = tunnel.streams.borrow().is_empty();
        let parting = {
            let mut state = tunnel.state.borrow_mut();
            // The GOAWAY first: behind a close_notify nobody would read it.
            let said = state.collect();
            said.and_then(|()| state.outbox.push_message(Content::Alert, &CLOSE_NOTIFY))
        };
        let _ = parting.map(|()| tunnel.flush_once().is_ok());
        match over {
            Some(Over::Offence(reason, why)) => {
                tunnel.offence.set(Some(reason));
                tunnel.die(&why);
                Err(why)
            }
            Some(Over::Broken(why)) => {
                tunnel.die(&why);
                Err(why)
            }
            _ if orderly => {
                tunnel.die("it was closed");
                Ok(())
            }
            _ => {
                let why = "the peer closed the tunnel with streams open";
                tunnel.die(why);
                Err(why.to_owned())
            }
        }
    }
}

impl Tunnel {
    /// Something that can wait does, since so many packets.
    fn waiting(&self) -> Option<u32> {
        let state = self.state.borrow();
        (state.patient > 0).then_some(state.sent)
    }

    fn flush_once(&self) -> Result<bool, Over> {
        let mut state = self.state.borrow_mut();
        if state.is_patient() {
            return Ok(true);
        }
        state.collect()?;
        if state.outbox.is_worn() {
            state.change_own_key()?;
        }
        let sent = state.flush(&self.tcp);
        sent.map_err(|why| Over::Broken(format!("the connection broke: {why}")))
    }

    /// Whoever waits for room in the outbox tries again, in the order of their coming.
    fn unpark(&self) {
        if self.parked.borrow().is_empty()
            || self.state.borrow().outbox.unsent() >= OUTBOX_LIMIT / 2
        {
            return;
        }
        for stream in self.parked.borrow_mut().drain(..) {
            stream.parked.set(false);
            stream.waker.wake();
        }
    }
}
