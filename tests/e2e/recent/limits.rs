//! What the comments of our rules say that the rules cannot do, and how much they can.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use postern_tests::netns::{Family, ip_of};
use postern_tests::wait::{LONG, wait_for};

use super::scene::{Rules, SPOOFED, Scene, UNRELATED, Wanted};
use crate::neighbours::at_once;

#[test]
fn five_strays_are_let_be_and_six_end_an_attempt() -> Result<()> {
    at_once(&Rules::FEW, |&rules| {
        let mut scene = Scene::new(rules, &Wanted::wiki())?;
        for strays in [5, 6] {
            for between in [1, 2] {
                for over_udp in [false, true] {
                    let from = scene.address()?;
                    (0..between).try_for_each(|index| scene.step(from, index))?;
                    for port in UNRELATED + 1..=UNRELATED + strays {
                        if over_udp { scene.udp(from, port)? } else { scene.syn(from, port)? }
                    }
                    (between..3).try_for_each(|index| scene.step(from, index))?;
                    let what = format!("{rules:?}: {strays} strays behind step {between}, UDP: {over_udp}");
                    assert_eq!(scene.is_open(from)?, strays == 5, "{what}");
                    // The next attempt begins without any.
                    scene.knock(from)?;
                    ensure!(scene.is_open(from)?, "{what}: and never again");
                }
            }
        }
        Ok(())
    })
    .map(drop)
}

/// Six ports lie between one step and the next, and more addresses than a list has room for scan them side by side.
#[test]
fn nobody_hides_strays_behind_those_of_others() -> Result<()> {
    at_once(&Rules::FEW, |&rules| {
        let mut scene = Scene::new(rules, &Wanted::steps("7000,7007,7014"))?;
        let addresses = scene.addresses(150)?;
        for port in 7000..=7014 {
            addresses.iter().try_for_each(|&from| scene.syn(from, port))?;
        }
        assert_eq!(scene.to_whom_is_open(&addresses)?, 0, "{rules:?}");
        let from = scene.address()?;
        scene.knock(from)?;
        ensure!(scene.is_open(from)?, "{rules:?} does not open any more");
        Ok(())
    })
    .map(drop)
}

/// "100 made-up addresses that agree with the client's in these crowd it out"; 99 do not.
#[test]
fn a_hundred_addresses_with_the_same_last_bits_crowd_one_out() -> Result<()> {
    let xtables = Rules::OURS.map(|rules| matches!(rules, Rules::Xtables(..)).then_some(rules));
    let xtables: Vec<_> = xtables.into_iter().flatten().collect();
    at_once(&xtables, |&rules| {
        for steps in ["8881,7777,9991", "8881"] {
            let mut scene = Scene::new(rules, &Wanted::steps(steps))?;
            for others in [99, 100] {
                let from = scene.address()?;
                let alike =
                    (SPOOFED..).filter(|number| last_bits(ip_of(*number, rules.family())) == last_bits(from));
                scene.step(from, 0)?;
                for number in alike.take(others) {
                    scene.step(ip_of(number, rules.family()), 0)?;
                }
                (1..scene.steps.len()).try_for_each(|index| scene.step(from, index))?;
                assert_eq!(scene.is_open(from)?, others == 99, "{rules:?} {steps}: {others} others");
                scene.knock(from)?;
                ensure!(scene.is_open(from)?, "{rules:?} {steps}: and never again");
            }
        }
        Ok(())
    })
    .map(drop)
}

fn last_bits(address: IpAddr) -> u8 {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    last & 0xf
}

/// "First steps from more made-up addresses than that keep others from beginning; who has begun goes on."
#[test]
fn a_full_set_keeps_who_is_in_it_and_takes_nobody_more() -> Result<()> {
    const ROOM: u32 = 65_536;
    let wanted = Wanted { timeout: "10s", ..Wanted::wiki() };
    let mut scene = Scene::new(Rules::Nft(Family::V4), &wanted)?;
    let (before, amid) = (scene.address()?, scene.address()?);
    scene.step(before, 0)?;
    let first = u32::from(Ipv4Addr::new(100, 64, 0, 0));
    for address in first..first + ROOM {
        scene.step(Ipv4Addr::from(address).into(), 0)?;
    }
    scene.knock(amid)?;
    scene.steps(before, &[1, 2])?;
    ensure!(scene.is_open(before)?, "who had begun is kept out");
    ensure!(!scene.is_open(amid)?, "there is more room than is said");
    wait_for("room again", LONG, || {
        scene.knock(amid)?;
        Ok(scene.is_open(amid)?.then_some(()))
    })
}
