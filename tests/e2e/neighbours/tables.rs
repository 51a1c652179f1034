//! Rules that somebody wrote by himself: a table of nftables, another table of iptables, the other kind of iptables.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::gate::{Gate, SSH, Settings, Variant};
use postern_tests::netns::Family;
use postern_tests::probe::{Connection, Seen, wait_to_see};
use postern_tests::wait::LONG;

use super::{at_once, holds_and_opens, knocks_in_vain, remarks, remedy, removes_ours_alone, script};
use crate::world::World;

/// Rules that keep out who knocks, and what `check` says that helps.
struct Obstacle {
    variant: Variant,
    family: Family,
    rules: &'static str,
    remedy: &'static str,
}

/// As Debian's examples begin.
const WORKSTATION: &str = "nft -f - <<'END'
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iif lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport { 80, 443 } accept
        ip saddr 10.0.0.0/24 tcp dport 9 accept
        counter
    }
}
END";

const OBSTACLES: &[Obstacle] = &[
    Obstacle {
        variant: Variant::Nft,
        family: Family::V4,
        rules: WORKSTATION,
        remedy: "nft insert rule inet filter input tcp dport 22 accept",
    },
    Obstacle {
        variant: Variant::Legacy,
        family: Family::V6,
        rules: WORKSTATION,
        remedy: "nft insert rule inet filter input tcp dport 22 accept",
    },
    Obstacle {
        variant: Variant::Nftables,
        family: Family::V4,
        rules: WORKSTATION,
        remedy: "nft insert rule inet filter input tcp dport 22 accept",
    },
    Obstacle {
        variant: Variant::Nftables,
        family: Family::V6,
        rules: "ip6tables-nft -t mangle -A PREROUTING -i eth0 -p tcp -m multiport --dports 20:25 -j DROP",
        remedy: "ip6tables-nft -t mangle -I PREROUTING -p tcp --dport 22 -j ACCEPT",
    },
    Obstacle {
        variant: Variant::Nft,
        family: Family::V4,
        rules: "iptables-nft -t mangle -A PREROUTING -i eth0 -p tcp -m multiport --dports 20:25 -j DROP",
        remedy: "iptables-nft -t mangle -I PREROUTING -p tcp --dport 22 -j ACCEPT",
    },
    Obstacle {
        variant: Variant::Legacy,
        family: Family::V6,
        rules: "ip6tables-legacy -t raw -N shut; ip6tables-legacy -t raw -A PREROUTING -p tcp -g shut; \
                ip6tables-legacy -t raw -A shut ! -i lo -j DROP",
        remedy: "ip6tables-legacy -t raw -I PREROUTING -p tcp --dport 22 -j ACCEPT",
    },
    Obstacle {
        variant: Variant::Nft,
        family: Family::V4,
        rules: "iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; \
                iptables-legacy -P INPUT DROP",
        remedy: "iptables-legacy -I INPUT -p tcp --dport 22 -j ACCEPT",
    },
    Obstacle {
        variant: Variant::Legacy,
        family: Family::V6,
        rules: "ip6tables-nft -A INPUT ! -s fd00:1::/64 -p tcp --dport 22 -j REJECT",
        remedy: "ip6tables-nft -I INPUT -p tcp --dport 22 -j ACCEPT",
    },
];

#[test]
fn whoever_keeps_out_who_knocks_is_named_with_the_remedy() -> Result<()> {
    at_once(OBSTACLES, |obstacle| {
        let settings = Settings { variant: obstacle.variant, ..Settings::default() };
        let mut world = World::new(settings)?;
        world.listen(&[SSH])?;
        let host = world.gate.host();
        // A lock that the gate, which is not root, does not need.
        let lock = world.gate.directory().join("others.lock");
        let locked = |rules: &str| format!("export XTABLES_LOCKFILE={}; {rules}", lock.display());
        script(host, &locked(obstacle.rules))?;
        world.gate.start(&[])?;
        knocks_in_vain(&world, &[obstacle.family])?;
        let told = remarks(world.gate.posternd(&["check"])?)?;
        let remedy = remedy(&told, &["22/tcp is shut by"])?;
        assert_eq!(remedy, obstacle.remedy);
        script(world.gate.host(), &locked(&remedy))?;
        holds_and_opens(&world, &[obstacle.family])?;
        let told = remarks(world.gate.posternd(&["check"])?)?;
        ensure!(!told.iter().any(|remark| remark.contains("22/tcp")), "{told:#?}");
        let natives = natives(&world.gate)?;
        removes_ours_alone(&mut world)?;
        assert_eq!(self::natives(&world.gate)?, natives);
        ensure!(!world.gate.nft(&["list", "tables"])?.contains("postern"), "a table of ours is left");
        Ok(())
    })
    .map(drop)
}

/// The table of [`WORKSTATION`], where it is.
fn natives(gate: &Gate) -> Result<String> {
    script(gate.host(), "nft --stateless list table inet filter || true")
}

#[test]
fn sessions_that_are_not_tracked_end_with_their_window_until_they_are() -> Result<()> {
    let mut world = World::new(Settings { window_secs: 2, ..Settings::default() })?;
    world.listen(&[SSH])?;
    script(
        world.gate.host(),
        "iptables-nft -t raw -A PREROUTING -p tcp --dport 22 -j NOTRACK; \
         iptables-nft -t raw -A OUTPUT -p tcp --sport 22 -j NOTRACK",
    )?;
    world.gate.start(&[])?;
    let door = world.gate.at(Family::V4, SSH);
    for tracked in [false, true] {
        world.opens(Family::V4)?;
        let mut session = Connection::open(&world.home, door)?;
        session.echoes("within the window", LONG)?;
        wait_to_see(&world.home, door, Seen::Nothing)?;
        let goes_on = session.echoes("after its end", Duration::from_secs(2)).is_ok();
        assert_eq!(goes_on, tracked);
        let told = remarks(world.gate.posternd(&["check"])?)?;
        for chain in ["PREROUTING", "OUTPUT"] {
            match remedy(&told, &["22/tcp is not tracked", chain]) {
                Ok(remedy) if !tracked => drop(script(world.gate.host(), &remedy)?),
                Err(_) if tracked => {}
                other => panic!("{other:?} among {told:#?}"),
            }
        }
    }
    removes_ours_alone(&mut world)
}

/// Capturing comes first: no rule keeps a knock from being read, and none of these is worth a warning.
#[test]
fn knocks_are_read_whatever_becomes_of_them() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    script(
        world.gate.host(),
        "iptables-nft -t raw -A PREROUTING -p udp -j DROP; ip6tables-nft -t raw -A PREROUTING -p udp -j DROP; \
         iptables-nft -P INPUT DROP; ip6tables-nft -P INPUT DROP",
    )?;
    world.gate.start(&[])?;
    holds_and_opens(&world, &Family::ALL)?;
    assert_eq!(remarks(world.gate.posternd(&["check"])?)?, Vec::<String>::new());
    removes_ours_alone(&mut world)
}

#[test]
fn a_knock_port_that_is_led_elsewhere_is_warned_of() -> Result<()> {
    let world = World::running(Settings::default())?;
    script(
        world.gate.host(),
        "iptables-nft -t nat -A PREROUTING -p udp --dport 443 -j REDIRECT --to-ports 53",
    )?;
    let told = remarks(world.gate.posternd(&["check"])?)?;
    let remedy = remedy(&told, &["knock port 443/udp is led elsewhere"])?;
    assert_eq!(remedy, "iptables-nft -t nat -I PREROUTING -p udp --dport 443 -j ACCEPT");
    script(world.gate.host(), &remedy)?;
    assert_eq!(remarks(world.gate.posternd(&["check"])?)?, Vec::<String>::new());
    holds_and_opens(&world, &[Family::V4])
}

/// On a host that has nothing but the one kind of iptables.
#[test]
fn what_is_not_installed_is_no_failure() -> Result<()> {
    let world = World::running(Settings::default())?;
    let programs = world.gate.directory().join("programs");
    fs::create_dir(&programs)?;
    let found = script(
        world.gate.host(),
        "for program in ip iptables-nft ip6tables-nft iptables-nft-save ip6tables-nft-save; do \
         command -v $program; done",
    )?;
    for path in found.lines() {
        symlink(path, programs.join(path.rsplit('/').next().unwrap_or(path)))?;
    }
    let mut check = world.gate.posternd(&["check"])?;
    check.env("PATH", &programs);
    let told = remarks(check)?;
    ensure!(matches!(&told[..], [note] if note.starts_with("note: there is no nft here")), "{told:#?}");
    Ok(())
}
