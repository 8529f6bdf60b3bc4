//! Runs a check on generated input. The same cases every time; with FUZZ_SECONDS in the environment, further ones for so
//! long. Owns rounds, seeds and damage; what is checked is beside the code that it checks.
//!
//! Stable Rust has no coverage feedback, so the strategies know the formats: damaged good input reaches further than noise.

use std::io::Write;
use std::time::{Duration, Instant};

pub use proptest;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// Runs `check`, which panics on what must not be, on `cases` inputs per round. A failure is told with the smallest input
/// that still fails and the round to repeat.
pub fn fuzz<S: Strategy>(name: &str, cases: u32, strategy: S, check: impl Fn(S::Value)) {
    let seconds = std::env::var("FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let (begin, limit) = (Instant::now(), Duration::from_secs(seconds.unwrap_or(0)));
    let mut round: u64 = 0;
    loop {
        run(name, round, cases, &strategy, &check);
        round += 1;
        if begin.elapsed() >= limit {
            break;
        }
    }
    // Past the test harness, which swallows what passing tests print.
    let line = format!("fuzz {name}: {} cases\n", round * u64::from(cases));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn run<S: Strategy>(name: &str, round: u64, cases: u32, strategy: &S, check: &impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&round.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let outcome = TestRunner::new_with_rng(config, random).run(strategy, |input| {
        check(input);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, input)) => panic!("fuzz {name}, round {round}: {why}\n{input:?}"),
        Err(TestError::Abort(why)) => panic!("fuzz {name}, round {round}: no input: {why}"),
    }
}

/// Noise, and the good inputs `seeds` with a few edits: bytes changed, cut out, doubled, put in; a piece of another seed.
pub fn damaged(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let others = seeds.clone();
    let edits = vec(
        (any::<u8>(), any::<usize>(), any::<usize>(), any::<u8>()),
        0..6,
    );
    let damaged = (select(seeds), edits, select(others)).prop_map(|(mut bytes, edits, other)| {
        edits
            .into_iter()
            .for_each(|edit| damage(&mut bytes, edit, &other));
        bytes
    });
    prop_oneof![8 => damaged, 1 => vec(any::<u8>(), 0..200)]
}

fn damage(bytes: &mut Vec<u8>, (kind, at, len, byte): (u8, usize, usize, u8), other: &[u8]) {
    let at = at % (bytes.len() + 1);
    let end = (at + len % 24).min(bytes.len());
    match kind % 6 {
        0 if at < bytes.len() => bytes[at] = byte,
        1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
        2 => drop(bytes.drain(at..end)),
        3 => bytes.extend_from_within(at..end),
        4 => drop(bytes.splice(
            at..at,
            other.iter().copied().skip(len % (other.len() + 1)).take(40),
        )),
        _ => bytes.insert(at, byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_round_is_the_same_every_time() {
        let heard = || {
            let all = RefCell::new(Vec::new());
            run(
                "itself",
                3,
                50,
                &damaged(vec![b"good".to_vec()]),
                &|bytes| all.borrow_mut().push(bytes),
            );
            all.into_inner()
        };
        assert_eq!(heard(), heard());
    }

    #[test]
    #[should_panic(expected = "fuzz itself, round 0")]
    fn a_failure_names_its_round() {
        run("itself", 0, 50, &any::<u8>(), &|byte| {
            assert!(byte < 128, "large")
        });
    }
}
