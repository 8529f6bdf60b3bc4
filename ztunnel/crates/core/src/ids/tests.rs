//! Every refusal of the SPIFFE specification and of Istio's profile that shows in the text alone.

use super::*;
use crate::fixtures::Dice;

fn why(text: &str) -> BadId {
    SpiffeId::parse(text).expect_err(text)
}

#[test]
fn an_identity_knows_its_parts() {
    let id = SpiffeId::parse("spiffe://td.example_1-a/ns/shop/sa/web.v2").unwrap();
    assert_eq!(id.trust_domain(), "td.example_1-a");
    assert_eq!((id.namespace(), id.service_account()), ("shop", "web.v2"));
    assert_eq!(id.principal(), "td.example_1-a/ns/shop/sa/web.v2");
    assert_eq!(id.to_string(), id.as_str());
    assert_eq!(SpiffeId::new("td.example_1-a", "shop", "web.v2"), Ok(id));
}

#[test]
fn a_trust_domain_may_look_like_anything() {
    for domain in ["1.2.3.4", "..", "-", "_", "a", "td."] {
        assert!(SpiffeId::new(domain, "a", "b").is_ok(), "{domain}");
    }
}

#[test]
fn what_is_no_spiffe_uri_is_refused() {
    for text in [
        "",
        "spiffe:/td/ns/a/sa/b",
        "https://td/ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        " spiffe://td/ns/a/sa/b",
    ] {
        assert_eq!(why(text), BadId::Scheme, "{text:?}");
    }
}

#[test]
fn a_trust_domain_with_anything_more_is_refused() {
    let domains = [
        "", "TD", "td:443", "user@td", "%61", "[::1]", "td evil", "td\t", "td\r\n", "t\0d", "té",
        "td?", "td#",
    ];
    for domain in domains {
        assert_eq!(
            why(&format!("spiffe://{domain}/ns/a/sa/b")),
            BadId::TrustDomain,
            "{domain:?}"
        );
    }
}

#[test]
fn a_path_of_another_form_is_refused() {
    let paths = [
        "",
        "/",
        "/ns/a/sa/b/",
        "/ns/a/sa/b/c",
        "//ns/a/sa/b",
        "/ns/a//sa/b",
        "/ns/a/./sa/b",
        "/ns/a/../sa/b",
        "/ns/a",
        "/NS/a/sa/b",
        "/ns/a/SA/b",
        "/sa/b/ns/a",
        "/workload/web",
    ];
    for path in paths {
        assert_eq!(why(&format!("spiffe://td{path}")), BadId::Path, "{path:?}");
    }
}

#[test]
fn names_that_kubernetes_would_not_give_are_refused() {
    let long = "a".repeat(64);
    let odd = [
        "", ".", "..", "-a", "a-", "A", "a_b", "%2e%2e", "a?q", "a#f", "a b", "a\n", "a\0", "é",
        &long,
    ];
    for name in odd {
        assert_eq!(
            why(&format!("spiffe://td/ns/{name}/sa/b")),
            BadId::Namespace,
            "{name:?}"
        );
        assert_eq!(
            why(&format!("spiffe://td/ns/a/sa/{name}")),
            BadId::ServiceAccount,
            "{name:?}"
        );
    }
    assert_eq!(why("spiffe://td/ns/a.b/sa/c"), BadId::Namespace);
    assert_eq!(why("spiffe://td/ns/a/sa/b..c"), BadId::ServiceAccount);
}

#[test]
fn the_limits_are_exact() {
    assert!(SpiffeId::new(&"a".repeat(255), "a", "b").is_ok());
    assert_eq!(
        SpiffeId::new(&"a".repeat(256), "a", "b"),
        Err(BadId::TrustDomain)
    );
    assert!(SpiffeId::new("td", &"a".repeat(63), &["a"; 127].join(".")).is_ok());
    assert_eq!(
        SpiffeId::new("td", "a", &["a"; 128].join(".")),
        Err(BadId::ServiceAccount)
    );
    let filled = |bytes: usize| format!("spiffe://td/{}", "a".repeat(bytes - 12));
    assert_eq!(
        (why(&filled(2048)), why(&filled(2049))),
        (BadId::Path, BadId::TooLong)
    );
}

/// A second reading of the grammar: split first, look at the characters afterwards.
fn oracle(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let [scheme, empty, domain, ns, namespace, sa, account] = parts[..] else {
        return false;
    };
    let clean = |text: &str, extra: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c))
    };
    let label = |text: &str| {
        clean(text, "-") && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-')
    };
    (scheme, empty, ns, sa) == ("spiffe:", "", "ns", "sa")
        && clean(domain, ".-_")
        && domain.len() <= 255
        && label(namespace)
        && account.len() <= 253
        && account.split('.').all(label)
}

#[test]
fn ten_thousand_mutations_find_the_parser_and_its_oracle_of_one_mind() {
    let (mut dice, mut accepted) = (Dice(1), 0);
    let alphabet: Vec<char> = "az09.-_/:@%?#[]AZ \0\n\té".chars().collect();
    for _ in 0..10_000 {
        let mut text: Vec<char> = "spiffe://td.x/ns/shop/sa/web-1".chars().collect();
        for _ in 0..dice.below(3) {
            let at = dice.below(text.len());
            let end = at + dice.below(2);
            text.splice(at..end, dice.some(&alphabet, 1));
        }
        let text: String = text.into_iter().collect();
        assert_eq!(SpiffeId::parse(&text).is_ok(), oracle(&text), "{text:?}");
        accepted += usize::from(oracle(&text));
    }
    assert!(
        (2_000..9_000).contains(&accepted),
        "the dice are loaded: {accepted} accepted"
    );
}
