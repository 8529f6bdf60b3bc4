//! Equal words of one push become one word in memory: a namespace, a node, a zone or an identity is said a thousand times.
//!
//! A pool lives as long as one push, so that nothing has to be taken out again; pushes are large when there is much to share.

use super::hash::Build;
use super::model::*;
use crate::ids::{BadId, SpiffeId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Pool {
    words: HashSet<Word, Build>,
    ports: HashSet<Arc<[Port]>, Build>,
    /// By their text.
    identities: HashMap<Box<str>, SpiffeId, Build>,
    spelt: String,
}

impl Pool {
    pub(super) fn word(&mut self, text: &str) -> Word {
        if let Some(known) = self.words.get(text) {
            return known.clone();
        }
        let word = Word::from(text);
        self.words.insert(word.clone());
        word
    }

    pub(super) fn ports(&mut self, ports: Vec<Port>) -> Arc<[Port]> {
        if let Some(known) = self.ports.get(&*ports) {
            return known.clone();
        }
        let ports = Arc::from(ports);
        self.ports.insert(Arc::clone(&ports));
        ports
    }

    /// As `SpiffeId::new`.
    pub(super) fn identity(
        &mut self,
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<SpiffeId, BadId> {
        SpiffeId::spell(&mut self.spelt, trust_domain, namespace, service_account);
        if let Some(known) = self.identities.get(&*self.spelt) {
            return Ok(known.clone());
        }
        let identity = SpiffeId::parse(&self.spelt)?;
        self.identities
            .insert(self.spelt.as_str().into(), identity.clone());
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_is_one() {
        let mut pool = Pool::default();
        let (a, b) = (pool.word("shop"), pool.word("shop"));
        assert!(Arc::ptr_eq(&a, &b));
        assert_ne!(a, pool.word("web"));
        let port = Port {
            service: 80,
            target: None,
        };
        let (a, b) = (pool.ports(vec![port]), pool.ports(vec![port]));
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(pool.ports(Vec::new()).len(), 0);
    }

    #[test]
    fn an_identity_is_what_it_would_be_without_a_pool() {
        let mut pool = Pool::default();
        for (domain, namespace, account) in [
            ("td", "shop", "web"),
            ("td", "shop", "web"),
            ("td/ns/shop", "web", "x"),
            ("td", "Shop", "web"),
            ("td", "shop", "web/x"),
            ("", "shop", "web"),
        ] {
            let plain = SpiffeId::new(domain, namespace, account);
            assert_eq!(pool.identity(domain, namespace, account), plain);
        }
    }
}
