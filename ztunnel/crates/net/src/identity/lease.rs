//! How long an established connection may live: as long as the certificates it began with, and as long as the peer's is
//! still believed.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use ztunnel_core::ids::SpiffeId;

use super::Credentials;
use super::chain::{end, until};
use crate::verify::{Judge, Peer};

pub(crate) struct Lease {
    ours: (SpiffeId, f64),
    peers: f64,
    judge: Arc<Judge>,
    /// As the peer showed it, leaf first.
    chain: Vec<CertificateDer<'static>>,
    peer: Peer,
}

impl Lease {
    /// The earliest end counts of all that the peer showed.
    pub(crate) fn new(own: &Credentials, chain: Vec<CertificateDer<'static>>, peer: Peer) -> Self {
        let ends = chain.iter().map(|certificate| end(certificate));
        Self {
            ours: (own.id.clone(), own.not_after),
            peers: ends.fold(f64::INFINITY, f64::min),
            judge: own.configs.judge.clone(),
            chain,
            peer,
        }
    }

    /// Zero when it is over.
    pub(crate) fn remaining(&self) -> Duration {
        until(self.ours.1.min(self.peers))
    }

    /// Why it is over, once it is: by the calendar, which may be set forward.
    pub(crate) fn over(&self) -> Option<String> {
        if until(self.peers).is_zero() {
            return Some("the peer's certificate has expired".to_owned());
        }
        let (id, not_after) = &self.ours;
        until(*not_after).is_zero().then(|| {
            format!("our certificate for {id}, which the connection began with, has expired")
        })
    }

    /// Why the peer would be refused today.
    pub(crate) fn doubt(&self) -> Option<String> {
        let chain: Vec<_> = self.chain.iter().collect();
        self.judge
            .identify(&chain, self.peer, UnixTime::now())
            .err()
            .map(|why| format!("the peer is no longer trusted: {why}"))
    }
}
