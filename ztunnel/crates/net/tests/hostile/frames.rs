//! Hostile HTTP/2 (`attacks`) through real TLS to our server.

use crate::attacks::End::{self, Dies, Lives};
use crate::attacks::{floods, heads, resets, rules};
use crate::corpus::Corpus;
use crate::peer::{Outcome, attack};
use crate::transport_support::{CLIENT, Ca, id, on_worker};
use ztunnel_net::tunnel::ServeError;

#[test]
fn a_hostile_client_hits_a_limit_and_the_reason_is_told() {
    let (mut corpus, ca) = (Corpus::new("hostile HTTP/2 clients"), Ca::new());
    for (name, bytes, end) in [resets(), floods(), heads(), rules()].into_iter().flatten() {
        corpus.case(name, || judge(&on_worker(attack(&ca, bytes)), &end));
    }
    corpus.finish();
}

fn judge(outcome: &Outcome, end: &End) {
    match (end, &outcome.ended) {
        (
            Dies(code, why),
            Some(ServeError::Offence {
                reason,
                why: told,
                peer,
            }),
        ) => {
            assert_eq!(reason.to_uppercase(), *code);
            assert!(told.contains(why), "{told:?} does not say {why:?}");
            assert_eq!(*peer, id(CLIENT));
            let parting = outcome.said.last().cloned().unwrap_or_default();
            assert!(
                parting.starts_with("GOAWAY") && parting.ends_with(code),
                "{parting}"
            );
            assert!(!outcome.served);
        }
        (Lives(answers), _) => {
            for answer in *answers {
                assert!(
                    outcome.said.iter().any(|said| said == answer),
                    "no {answer:?} in {:?}",
                    outcome.said
                );
            }
            assert!(
                outcome.served,
                "the honest stream came to nothing: {:?}",
                outcome.ended
            );
        }
        (Dies(..), ended) => panic!("it ended with {ended:?} after {:?}", outcome.said),
    }
}
