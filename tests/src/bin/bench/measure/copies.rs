//! Copies of a recorded knock: the hint that they carry is a client's, and still alive.

use anyhow::Context;

use super::junk::{ALONE, FIGURES, KNOCKS, amid, name};
use super::{Plan, in_turns};
use crate::contenders::{Contender, Setup};
use crate::flood::Junk;
use crate::report::Section;

const TITLE: &str = "3a. Copies of one recorded knock";
const RATES: [Option<u32>; 2] = [Some(200_000), None];
/// Of an IPv4 header and of a UDP header.
const HEADERS: usize = 28;

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let takes_part = |who: &Contender| who.has_datagrams() && who.has_first_firewall();
    let who = plan.contenders.iter().copied().filter(takes_part).collect();
    let plan = Plan { contenders: who, rounds: 1, ..*plan };
    in_turns(&plan, &mut section, "", Setup::PLAIN, |section, contender, scene| {
        for rate in RATES {
            let recorded = scene.knocks(1)?.remove(0);
            let of = recorded.packets[0].get(HEADERS..).context("a datagram")?.to_vec();
            let port = scene.contender.junk().port();
            let figures = amid(scene, Junk::Copies { port, of }, rate, ALONE, KNOCKS)?;
            section.enter(&name(rate), &contender.name(), figures);
        }
        Ok(())
    });
    section
}
