//! What the shell may say about a data path, as one JSON object. Owns its keys, defaults and ranges; nothing else reads JSON.

use serde::Deserialize;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::log::{Format, Level};
use ztunnel_core::tables::Outbound;

/// Longest deadline that makes sense to configure, seconds: a day.
const LONGEST_S: f64 = 86_400.0;
const ALLOW_ANY: &str = "ALLOW_ANY";
const REGISTRY_ONLY: &str = "REGISTRY_ONLY";
const MOST_WORKERS: usize = 256;

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub network: String,
    pub cluster_id: String,
    pub trust_domain: String,
    /// Below `svc.` of it are the names of the cluster's services.
    pub cluster_domain: String,
    pub node_name: String,
    /// 0: one per core; see `worker_count`.
    pub workers: usize,
    /// `SO_MARK` of every socket of ours: what the redirection rules exempt.
    pub packet_mark: u32,
    /// Applications see their client's address.
    pub orig_src: bool,
    pub ipv6: bool,
    /// Also between two pods of this node bytes go through a tunnel.
    pub same_node_tls: bool,
    /// What becomes of destinations that the mesh does not know, for workloads that the control plane says nothing of.
    pub outbound_policy: String,
    pub connect_timeout_s: f64,
    pub handshake_timeout_s: f64,
    pub pool_idle_s: f64,
    /// Where keys and certificates outlive a restart; empty: nowhere. Must be on tmpfs.
    pub key_dir: String,
    pub access_log: String,
    pub log_level: String,
    /// "console" or "json"; of every line that the core writes.
    pub log_format: String,
    /// Share of the connections that a trace is sampled of; `null`: tracing is off.
    pub trace_ratio: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            network: String::new(),
            cluster_id: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            node_name: String::new(),
            workers: 0,
            packet_mark: 0x539,
            orig_src: true,
            ipv6: true,
            same_node_tls: false,
            outbound_policy: ALLOW_ANY.into(),
            connect_timeout_s: 10.0,
            handshake_timeout_s: 5.0,
            pool_idle_s: 300.0,
            key_dir: String::new(),
            access_log: "stderr".into(),
            log_level: "info".into(),
            log_format: "json".into(),
            trace_ratio: None,
        }
    }
}

impl Config {
    /// One sentence for the operator when a key is unknown, of a wrong type or out of range.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(json)
            .map_err(|e| one_line(&format!("the core's configuration: {e}")))?;
        config
            .check()
            .map_err(|why| format!("the core's configuration: {why}"))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        for (key, value) in [
            ("connect_timeout_s", self.connect_timeout_s),
            ("handshake_timeout_s", self.handshake_timeout_s),
            ("pool_idle_s", self.pool_idle_s),
        ] {
            if !(value > 0.0 && value <= LONGEST_S) {
                return Err(format!(
                    "{key} is {value}, which is not between 0 and {LONGEST_S} seconds"
                ));
            }
        }
        if self.workers > MOST_WORKERS {
            return Err(format!(
                "workers is {}, which is more than {MOST_WORKERS}",
                self.workers
            ));
        }
        if self.access_log.is_empty() {
            return Err("access_log is empty; it is \"stderr\", \"off\" or a path".into());
        }
        if !matches!(&*self.outbound_policy, ALLOW_ANY | REGISTRY_ONLY) {
            return Err(format!(
                "outbound_policy is {:?}; it is \"{ALLOW_ANY}\" or \"{REGISTRY_ONLY}\"",
                self.outbound_policy
            ));
        }
        if let Some(ratio) = self.trace_ratio.filter(|r| !(0.0..=1.0).contains(r)) {
            return Err(format!(
                "trace_ratio is {ratio}, which is not between 0 and 1"
            ));
        }
        self.format()?;
        self.level().map(|_| ())
    }

    pub fn outbound(&self) -> Outbound {
        if self.outbound_policy == REGISTRY_ONLY {
            Outbound::RegistryOnly
        } else {
            Outbound::AllowAny
        }
    }

    pub fn level(&self) -> Result<Level, String> {
        self.log_level.parse()
    }

    pub fn format(&self) -> Result<Format, String> {
        self.log_format.parse()
    }

    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            given => given,
        }
    }

    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.connect_timeout_s)
    }
}

/// The parser repeats unknown keys as they are.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_means_every_default() {
        let config = Config::parse(b"{}").expect("valid");
        assert_eq!(
            (config.packet_mark, config.trust_domain.as_str()),
            (0x539, "cluster.local")
        );
        assert!(config.worker_count() >= 1);
    }

    #[test]
    fn what_is_unknown_or_out_of_range_is_one_sentence() {
        for (json, part) in [
            (&br#"{"wrokers": 2}"#[..], "wrokers"),
            (br#"{"workers": -1}"#, "workers"),
            (br#"{"workers": 100000}"#, "workers is 100000"),
            (br#"{"connect_timeout_s": 0}"#, "connect_timeout_s is 0"),
            (br#"{"log_level": "loud"}"#, "loud"),
            (br#"{"log_format": "xml"}"#, "xml"),
            (br#"{"trace_ratio": 1.5}"#, "trace_ratio is 1.5"),
            (br#"{"access_log": ""}"#, "access_log"),
            (br#"{"outbound_policy": "DENY_ALL"}"#, "DENY_ALL"),
            (b"[]x", "configuration"),
            (b"{\"a\\nb\": 1}", "a\u{fffd}b"),
        ] {
            let why = Config::parse(json).expect_err("refused");
            assert!(!why.contains('\n'), "{why}");
            if part != "workers" {
                assert!(why.contains(part), "{why}");
            }
        }
    }
}
