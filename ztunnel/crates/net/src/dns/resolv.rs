//! resolv.conf(5), as far as it concerns us. Owns the parsing of the node's; a pod's own is never read: the address that a
//! question was sent to says more.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

const PORT: u16 = 53;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<Box<str>>,
}

impl Resolv {
    /// Of the node, or of the tunnel's own container. Nothing when there is none.
    pub fn of_node() -> Self {
        let text = std::fs::read_to_string(Path::new("/etc/resolv.conf"));
        Self::parse(&text.unwrap_or_default())
    }

    /// Servers on loopback addresses are left out: in a pod's namespace somebody else answers there, or nobody. The last
    /// `search` or `domain` counts.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let ip = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    let usable = ip.filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
                    found
                        .servers
                        .extend(usable.map(|ip| SocketAddr::new(ip, PORT)));
                }
                Some("search" | "domain") => found.search = words.filter_map(domain).collect(),
                _ => {}
            }
        }
        found
    }
}

/// What a pod's resolver may put behind a name besides the cluster's own domains: what the node agent says, and what the
/// node's file does. One that the pod does not have is tried in vain.
pub fn search(told: &[String], cluster_domain: &str) -> Vec<Box<str>> {
    let told = told.iter().filter_map(|word| domain(word));
    // The file in a tunnel's own container names the tunnel's namespace, where names mean something else.
    let theirs = |domain: &str| {
        let rest = domain.strip_suffix(cluster_domain);
        !rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    told.chain(Resolv::of_node().search)
        .filter(|domain| theirs(domain))
        .collect()
}

/// Lower case, without the last dot; the root is none.
fn domain(word: &str) -> Option<Box<str>> {
    let name = word.trim_end_matches('.').to_ascii_lowercase();
    (!name.is_empty()).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_read_and_the_rest_passed_over() {
        let text = "# a comment\nnameserver 10.0.0.53\nnameserver 127.0.0.53\nnameserver fd00::53\nnameserver nonsense\n\
            domain first.example\nsearch Corp.Example. . lab.example\noptions ndots:5\n";
        let found = Resolv::parse(text);
        let servers: Vec<_> = found.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.53:53", "[fd00::53]:53"]);
        assert_eq!(found.search, ["corp.example".into(), "lab.example".into()]);
        assert_eq!(Resolv::parse(""), Resolv::default());
    }

    #[test]
    fn what_the_agent_says_of_a_pod_counts_without_the_clusters_domains() {
        let told = [
            "pay.svc.cluster.local",
            "cluster.local",
            "Corp.Example.",
            "xcluster.local",
        ];
        let found = search(&told.map(str::to_owned), "cluster.local");
        assert_eq!(found[..2], ["corp.example".into(), "xcluster.local".into()]);
    }
}
