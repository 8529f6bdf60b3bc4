//! How often which policy decided or would have: one counter per policy, rule, action and side. Owns the bound on what is
//! kept and how it is shown; judges nothing.

use crate::scrape::head;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use ztunnel_core::authz::{Because, Hit, Verdict};
use ztunnel_core::tables::{Action, Key, Policy, Tables};

/// Beyond it what policies that are gone have left is forgotten; then new combinations are not counted one by one.
const MOST: usize = 10_000;
const METRIC: &str = "nodemesh_policy_hits_total";

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Series {
    /// "": no ALLOW policy matched, or there was no room for more combinations.
    policy: Option<Key>,
    /// None: the policy was not there to have one.
    rule: Option<usize>,
    action: &'static str,
    dry_run: bool,
    outbound: bool,
}

/// Shared by all workers: touched once per connection, and only where there are policies.
#[derive(Debug, Default)]
pub struct Hits(Mutex<HashMap<Series, u64>>);

impl Hits {
    /// The verdict that a connection got. One that no policy decided is nobody's.
    pub fn decided(&self, tables: &Tables, verdict: &Verdict, outbound: bool) {
        let (action, policy, rule) = match verdict {
            Verdict::Allowed { by: None } => return,
            Verdict::Allowed { by: Some(hit) } => {
                (Action::Allow, Some(&hit.policy), Some(hit.rule))
            }
            Verdict::Denied { because, .. } => match because {
                Because::Matched(Hit { policy, rule }) => (Action::Deny, Some(policy), Some(*rule)),
                Because::Refused(policy) | Because::Unknown(policy) => {
                    (Action::Deny, Some(policy), None)
                }
                Because::NoneMatched => (Action::Deny, None, None),
            },
        };
        let series = Series {
            policy: policy.cloned(),
            rule,
            action: action.name(),
            dry_run: false,
            outbound,
        };
        self.count(tables, series);
    }

    /// A policy that decides nothing has matched.
    pub fn observed(&self, tables: &Tables, policy: &Policy, rule: usize, outbound: bool) {
        let series = Series {
            policy: Some(policy.key.clone()),
            rule: Some(rule),
            action: policy.action.name(),
            dry_run: policy.dry_run,
            outbound,
        };
        self.count(tables, series);
    }

    fn count(&self, tables: &Tables, series: Series) {
        let mut counts = self.lock();
        if counts.len() >= MOST && !counts.contains_key(&series) {
            forget_gone(&mut counts, tables);
            if counts.len() >= MOST {
                let rest = Series {
                    policy: None,
                    rule: None,
                    ..series
                };
                *counts.entry(rest).or_default() += 1;
                return;
            }
        }
        *counts.entry(series).or_default() += 1;
    }

    /// As Prometheus text. What policies that are gone have left is forgotten.
    pub fn render(&self, out: &mut String, tables: &Tables) {
        head(out, METRIC, "counter", "Verdicts by policy and rule");
        for (series, count) in self.sorted(tables) {
            let key = series.policy.as_deref().unwrap_or("");
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            let rule = series.rule.map(|rule| rule.to_string()).unwrap_or_default();
            // Writing to a String does not fail.
            let _ = writeln!(
                out,
                "{METRIC}{{reporter=\"{}\",policy_namespace=\"{}\",policy_name=\"{}\",rule=\"{rule}\",action=\"{}\",dry_run=\"{}\"}} {count}",
                series.reporter(),
                escaped(namespace),
                escaped(name),
                series.action,
                series.dry_run,
            );
        }
    }

    /// For the dump: policy ("": none) → its counters.
    pub fn by_policy(&self, tables: &Tables) -> HashMap<String, Vec<Value>> {
        let mut found: HashMap<String, Vec<Value>> = HashMap::new();
        for (series, count) in self.sorted(tables) {
            let shown = json!({
                "rule": series.rule,
                "action": series.action,
                "dryRun": series.dry_run,
                "reporter": series.reporter(),
                "count": count,
            });
            let policy = series.policy.as_deref().unwrap_or("").to_owned();
            found.entry(policy).or_default().push(shown);
        }
        found
    }

    fn sorted(&self, tables: &Tables) -> Vec<(Series, u64)> {
        let mut counts = self.lock();
        forget_gone(&mut counts, tables);
        let mut all: Vec<_> = counts.iter().map(|(s, n)| (s.clone(), *n)).collect();
        drop(counts);
        all.sort_unstable();
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Series, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Series {
    fn reporter(&self) -> &'static str {
        if self.outbound {
            "source"
        } else {
            "destination"
        }
    }
}

/// What never was there (no rule) stays until there is no room: somebody is denied because of it.
fn forget_gone(counts: &mut HashMap<Series, u64>, tables: &Tables) {
    let full = counts.len() >= MOST;
    counts.retain(|series, _| match &series.policy {
        None => true,
        Some(key) => tables.policy(key).is_some() || (series.rule.is_none() && !full),
    });
}

/// Names come from a control plane: no text of theirs may end a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(policy: &str) -> Verdict {
        Verdict::Denied {
            because: Because::Unknown(policy.into()),
            why: String::new(),
        }
    }

    fn shown(hits: &Hits, tables: &Tables) -> Vec<String> {
        let mut out = String::new();
        hits.render(&mut out, tables);
        out.lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_verdict_is_counted_under_the_policy_that_decided() {
        let (hits, tables) = (Hits::default(), Tables::new("", "Kubernetes"));
        hits.decided(&tables, &Verdict::Allowed { by: None }, false);
        hits.decided(&tables, &denied("shop/\"late"), true);
        hits.decided(&tables, &denied("shop/\"late"), true);
        let none = Verdict::Denied {
            because: Because::NoneMatched,
            why: String::new(),
        };
        hits.decided(&tables, &none, false);
        assert_eq!(
            shown(&hits, &tables),
            [
                r#"nodemesh_policy_hits_total{reporter="destination",policy_namespace="",policy_name="",rule="",action="DENY",dry_run="false"} 1"#,
                r#"nodemesh_policy_hits_total{reporter="source",policy_namespace="shop",policy_name="\"late",rule="",action="DENY",dry_run="false"} 2"#,
            ]
        );
    }

    #[test]
    fn what_a_policy_that_is_gone_has_left_is_forgotten() {
        let (hits, tables) = (Hits::default(), Tables::new("", "Kubernetes"));
        let by = Some(Hit {
            policy: "shop/p".into(),
            rule: 0,
        });
        hits.decided(&tables, &Verdict::Allowed { by }, false);
        assert!(shown(&hits, &tables).is_empty());
    }

    #[test]
    fn the_number_of_series_is_bounded_and_no_verdict_is_lost() {
        let (hits, tables) = (Hits::default(), Tables::new("", "Kubernetes"));
        (0..MOST + 500).for_each(|n| hits.decided(&tables, &denied(&format!("shop/p{n}")), false));
        assert!(shown(&hits, &tables).len() <= MOST + 1);
    }
}
