//! Names as text: which hosts a name may mean to a client, and the names that stand for addresses. Looks nothing up.

use std::net::IpAddr;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub namespace: &'a str,
    /// The cluster's domain, `cluster.local`.
    pub domain: &'a str,
    /// Search domains of the client's resolver besides the three that Kubernetes gives.
    pub search: &'a [Box<str>],
}

/// A host that a name may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    pub(super) host: String,
    /// A search domain was taken off.
    pub(super) stripped: bool,
}

impl Asker<'_> {
    /// In the order in which they are tried: the name, what Kubernetes' search domains make of it, and the same without
    /// the search domain that the client's resolver has put behind it. Each host once.
    pub(super) fn aliases(&self, name: &str) -> Vec<Alias> {
        if self.is_full(name) {
            let host = name.to_owned();
            return vec![Alias {
                host,
                stripped: false,
            }];
        }
        let mut all: Vec<Alias> = Vec::new();
        let mut add = |host: String, stripped| {
            if all.iter().all(|known| known.host != host) {
                all.push(Alias { host, stripped });
            }
        };
        for host in self.expansions(name) {
            add(host, false);
        }
        for search in self.search_domains() {
            let stripped = name
                .strip_suffix(&*search)
                .and_then(|rest| rest.strip_suffix('.'))
                .filter(|rest| !rest.is_empty());
            for host in stripped.iter().flat_map(|rest| self.expansions(rest)) {
                add(host, true);
            }
        }
        all
    }

    /// The longest first, because one may end in another.
    fn search_domains(&self) -> Vec<String> {
        let services = self.services();
        let mut all = vec![
            format!("{}.{services}", self.namespace),
            services,
            self.domain.to_owned(),
        ];
        all.extend(self.search.iter().map(|domain| domain.to_string()));
        all.sort_by_key(|domain| std::cmp::Reverse(domain.len()));
        all
    }

    /// `NAME`, and by the number of its labels what may be missing up to `SERVICE.NAMESPACE.svc.DOMAIN`.
    fn expansions(&self, name: &str) -> Vec<String> {
        let (services, namespace, domain) = (self.services(), self.namespace, self.domain);
        let mut all = vec![name.to_owned()];
        let ends_in_svc = name.ends_with(".svc");
        match name.split('.').count() {
            1 => all.push(format!("{name}.{namespace}.{services}")),
            2 => {
                all.push(format!("{name}.{services}"));
                all.push(format!("{name}.{namespace}.{services}"));
            }
            3 if ends_in_svc => {
                all.push(format!("{name}.{domain}"));
                all.push(format!("{name}.{services}"));
            }
            3 => all.push(format!("{name}.{services}")),
            4 if ends_in_svc => all.push(format!("{name}.{domain}")),
            _ => {}
        }
        all
    }

    fn services(&self) -> String {
        format!("svc.{}", self.domain)
    }

    /// `SERVICE.NAMESPACE.svc.DOMAIN` means itself: what is left without a search domain would be another namespace's.
    fn is_full(&self, name: &str) -> bool {
        let rest = name.strip_suffix(&*self.services());
        rest.is_some_and(|rest| rest.ends_with('.') && rest.matches('.').count() == 2)
    }

    /// Is it a name of the cluster's own services?
    pub(super) fn is_below_services(&self, host: &str) -> bool {
        let rest = host.strip_suffix(self.domain);
        rest.is_some_and(|rest| rest.ends_with(".svc."))
    }
}

/// `*.b.c`, `*.c` of `a.b.c`.
pub(super) fn wildcards(host: &str) -> impl Iterator<Item = String> + '_ {
    let mut rest = host;
    std::iter::from_fn(move || {
        rest = rest.split_once('.')?.1;
        Some(format!("*.{rest}"))
    })
}

/// `_PORT._tcp.HOST`: the port's name and the host.
pub(super) fn service_port(name: &str) -> Option<(&str, &str)> {
    let (port, rest) = name.strip_prefix('_')?.split_once('.')?;
    Some((port, rest.strip_prefix("_tcp.")?))
}

/// RFC 1123, 2.1.
pub(super) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The address that `d.c.b.a.in-addr.arpa` or 32 digits before `ip6.arpa` stand for (RFC 1035, 3.5; RFC 3596, 2.5).
pub(super) fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(parts) = name.strip_suffix(".in-addr.arpa") {
        let bytes: Option<Vec<u8>> = parts.rsplit('.').map(|part| part.parse().ok()).collect();
        return Some(<[u8; 4]>::try_from(bytes?).ok()?.into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Option<Vec<u8>> = digits.rsplit('.').map(nibble).collect();
    let nibbles = <[u8; 32]>::try_from(nibbles?).ok()?;
    let bytes: [u8; 16] = std::array::from_fn(|i| nibbles[2 * i] << 4 | nibbles[2 * i + 1]);
    Some(bytes.into())
}

fn nibble(text: &str) -> Option<u8> {
    let mut characters = text.chars();
    let digit = characters.next()?.to_digit(16)?;
    characters.next().is_none().then_some(digit as u8)
}
