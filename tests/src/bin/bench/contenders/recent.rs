//! The ruleset of Arch's wiki that needs no daemon, and has no cryptography: `xt_recent` remembers who has taken which step.

use std::net::Ipv4Addr;

use anyhow::Result;
use postern_tests::netns::Host;
use postern_tests::process::succeed;
use postern_tests::wait::LONG;

use super::{Running, knockd::steps};
use crate::flood::Junk;
use crate::wire::Knock;

const RULES: &str = include_str!("../../../../e2e/recent/wiki.rules");
const STEPS: [u16; 3] = [8881, 7777, 9991];

pub(super) struct Recent {
    host: Host,
}

pub(super) fn start(host: Host) -> Result<Recent> {
    succeed(host.command("iptables-restore"), RULES.as_bytes(), LONG)?;
    Ok(Recent { host })
}

impl Running for Recent {
    fn host(&self) -> &Host {
        &self.host
    }

    fn knocks(&mut self, from: &[Ipv4Addr]) -> Result<Vec<Knock>> {
        Ok(from.iter().map(|&from| steps(from, &STEPS)).collect())
    }

    fn junk(&self) -> Junk {
        Junk::Syns { port: STEPS[0], sources: 5_000 }
    }

    fn first_step(&self) -> Option<u16> {
        Some(STEPS[0])
    }
}
