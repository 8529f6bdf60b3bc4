//! The corpus: a hundred things that a peer must not get away with, each shown to our server and to our client in a real
//! handshake, and a dozen unusual ones that are in order. Numbers and wording of the requirement: our catalogue of SVID
//! rules (SPIFFE-ID §2, X509-SVID §2 to §5, RFC 5280, RFC 8446). Everything is forged here, at run time.

#![allow(unreachable_pub)] // a program of its own

mod chains;
mod cryptography;
mod der;
mod encodings;
mod federation;
mod forge;
mod good;
mod identities;
mod peers;
mod pem;
mod purposes;
mod tls;
#[path = "../transport_support/mod.rs"]
mod transport_support;

use std::process::ExitCode;

use peers::{Mesh, Role, Shown, meet};

/// In which roles the peer is odd.
#[derive(Clone, Copy)]
pub enum As {
    Both,
    Client,
    Server,
}

pub enum Trial {
    /// Shows this in a handshake.
    Shows(fn(&Mesh) -> Shown),
    /// Does something odd of its own; Err: how our side refused.
    Does(fn(&Mesh) -> Result<(), String>),
}

/// `why`: what the refusal must say; "" for what must be let in.
pub struct Case {
    pub number: u8,
    pub what: &'static str,
    pub roles: As,
    pub why: &'static str,
    pub trial: Trial,
}

pub const fn shows(
    number: u8,
    what: &'static str,
    why: &'static str,
    make: fn(&Mesh) -> Shown,
) -> Case {
    Case {
        number,
        what,
        roles: As::Both,
        why,
        trial: Trial::Shows(make),
    }
}

pub const fn does(
    number: u8,
    what: &'static str,
    roles: As,
    why: &'static str,
    run: fn(&Mesh) -> Result<(), String>,
) -> Case {
    Case {
        number,
        what,
        roles,
        why,
        trial: Trial::Does(run),
    }
}

impl Case {
    fn roles(&self) -> &'static [Role] {
        match self.roles {
            As::Both => &[Role::Client, Role::Server],
            As::Client => &[Role::Client],
            As::Server => &[Role::Server],
        }
    }

    /// None: as it should be.
    fn trouble(&self, role: Role) -> Option<String> {
        let mesh = Mesh::new(role);
        let said = match self.trial {
            Trial::Shows(make) => meet(&mesh, &make(&mesh)),
            Trial::Does(run) => run(&mesh),
        };
        let should = if self.why.is_empty() {
            "let in"
        } else {
            self.why
        };
        match said {
            Ok(()) if self.why.is_empty() => None,
            Ok(()) => Some(format!("was let in, should be refused: {should}")),
            Err(why) if !self.why.is_empty() && why.contains(self.why) => None,
            Err(why) => Some(format!("{why:?}, should be: {should}")),
        }
    }
}

fn main() -> ExitCode {
    let bad: Vec<&Case> = [
        chains::CASES,
        identities::CASES,
        purposes::CASES,
        cryptography::CASES,
        encodings::CASES,
        tls::CASES,
        federation::CASES,
    ]
    .into_iter()
    .flatten()
    .collect();
    let complete = (1..=100).all(|number| bad.iter().any(|case| case.number == number));
    let ends = [
        run("bad", &bad),
        run("good", &good::CASES.iter().collect::<Vec<_>>()),
    ];
    if !complete {
        println!("svid corpus: a number between 1 and 100 is missing");
    }
    ExitCode::from(u8::from(!(complete && ends.iter().all(|fine| *fine))))
}

/// Prints one line in all, and one for each that is not as it should be.
fn run(kind: &str, cases: &[&Case]) -> bool {
    let (mut ran, mut passed) = (0, 0);
    for case in cases {
        for role in case.roles() {
            ran += 1;
            match case.trouble(*role) {
                None => passed += 1,
                Some(trouble) => println!("{} {} as {role:?}: {trouble}", case.number, case.what),
            }
        }
    }
    let verdict = if kind == "bad" { "refused" } else { "let in" };
    println!(
        "svid corpus: {} {kind} inputs; ran {ran} handshakes in both roles, {passed} {verdict} as they should be",
        cases.len()
    );
    ran == passed
}
