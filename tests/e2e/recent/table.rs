//! What may happen while somebody knocks: twenty tries each, with the wiki's rules and with ours.

use std::net::IpAddr;

use anyhow::Result;
use postern_tests::netns::ip_of;
use postern_tests::seed::seeded;

use super::scene::{Rules, SPOOFED, STEPS, Scene, UNRELATED, Wanted};
use crate::neighbours::at_once;

const TRIES: usize = 20;
/// The last port that a scan tries.
const SCANNED: u16 = 10_000;

/// The firewall that is there beside: a scan is over sooner where nothing answers.
const OTHERS: &str = "nft -f - <<'END'
table inet others {
    chain input {
        type filter hook input priority filter + 10; policy accept;
        tcp dport != { 22, 80 } ct state new drop
    }
}
END";

/// Something that happens, and whether the door is open behind it.
struct Row {
    what: &'static str,
    wiki_opens: bool,
    ours_opens: bool,
    happens: fn(&Scene, IpAddr) -> Result<()>,
}

const ROWS: &[Row] = &[
    Row { what: "nothing else", wiki_opens: true, ours_opens: true, happens: Scene::knock },
    Row {
        what: "the first SYN is sent again",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| scene.steps(from, &[0, 0, 1, 2]),
    },
    Row {
        what: "every SYN is sent again",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| scene.steps(from, &[0, 0, 1, 1, 2, 2]),
    },
    Row {
        what: "the first SYN is sent again, and comes late",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| scene.steps(from, &[0, 1, 0, 2]),
    },
    Row {
        what: "the client gives up, and begins anew",
        wiki_opens: true,
        ours_opens: true,
        happens: |scene, from| scene.steps(from, &[0, 1, 0, 1, 2]),
    },
    Row {
        what: "the client also connects to an unrelated port",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| {
            scene.step(from, 0)?;
            scene.syn(from, UNRELATED)?;
            scene.steps(from, &[1, 2])
        },
    },
    Row {
        what: "another address knocks right, then wrong",
        wiki_opens: true,
        ours_opens: true,
        happens: |scene, from| {
            scene.step(from, 0)?;
            scene.steps(stranger(scene), &[0, 1, 0, 2])?;
            scene.syn(stranger(scene), 4444)?;
            scene.steps(from, &[1, 2])
        },
    },
    Row {
        what: "another address touches the first port 3 times",
        wiki_opens: true,
        ours_opens: true,
        happens: |scene, from| {
            scene.step(from, 0)?;
            scene.steps(stranger(scene), &[0, 0, 0])?;
            scene.steps(from, &[1, 2])
        },
    },
    Row {
        what: "150 spoofed addresses send the first knock",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| spoofed(scene, from, 150),
    },
    Row {
        what: "1,000 spoofed addresses send the first knock",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| spoofed(scene, from, 1000),
    },
    Row {
        what: "behind the grant, a SYN to another port",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| {
            scene.knock(from)?;
            scene.syn(from, UNRELATED)
        },
    },
    Row {
        what: "behind the grant, the sequence once more",
        wiki_opens: false,
        ours_opens: true,
        happens: |scene, from| {
            scene.knock(from)?;
            scene.knock(from)
        },
    },
    Row {
        what: "two knocks are swapped",
        wiki_opens: false,
        ours_opens: false,
        happens: |scene, from| scene.steps(from, &[0, 2, 1]),
    },
    Row {
        what: "the other two knocks are swapped",
        wiki_opens: false,
        ours_opens: false,
        happens: |scene, from| scene.steps(from, &[1, 0, 2]),
    },
    Row {
        what: "a sequence that was recorded is sent from another address",
        wiki_opens: true,
        ours_opens: true,
        happens: |scene, from| {
            scene.knock(stranger(scene))?;
            scene.knock(from)
        },
    },
    Row {
        what: "a scan in random order",
        wiki_opens: false,
        ours_opens: false,
        happens: |scene, from| {
            let mut ports: Vec<_> = (1..=SCANNED).collect();
            seeded()?.shuffle(&mut ports);
            scan(scene, from, ports)
        },
    },
];

const ASCENDING: Row = Row {
    what: "an ascending scan, an ascending sequence",
    wiki_opens: false,
    ours_opens: false,
    happens: |scene, from| scan(scene, from, 1..=SCANNED),
};

fn stranger(scene: &Scene) -> IpAddr {
    ip_of(SPOOFED - 1, scene.rules.family())
}

fn spoofed(scene: &Scene, from: IpAddr, addresses: u16) -> Result<()> {
    scene.step(from, 0)?;
    scene.spoofed(addresses).try_for_each(|other| scene.step(other, 0))?;
    scene.steps(from, &[1, 2])
}

fn scan(scene: &Scene, from: IpAddr, ports: impl IntoIterator<Item = u16>) -> Result<()> {
    ports.into_iter().try_for_each(|port| scene.syn(from, port))
}

#[test]
fn each_row_of_the_table_is_as_it_says() -> Result<()> {
    let all: Vec<_> = [Rules::Wiki].into_iter().chain(Rules::FEW).collect();
    at_once(&all, |&rules| {
        let mut scene = Scene::new(rules, &Wanted::wiki())?;
        scene.script(OTHERS)?;
        ROWS.iter().try_for_each(|row| is_as_it_says(&mut scene, row))?;
        let ascending = Wanted::steps("1111,2222,3333");
        assert!(STEPS.iter().all(|step| !ascending.steps.contains(&step.to_string())));
        let mut scene = Scene::new(rules, &ascending)?;
        scene.script(OTHERS)?;
        is_as_it_says(&mut scene, &ASCENDING)?;
        is_as_it_says(&mut scene, &ROWS[0])
    })
    .map(drop)
}

fn is_as_it_says(scene: &mut Scene, row: &Row) -> Result<()> {
    let addresses = scene.addresses(TRIES)?;
    assert_eq!(scene.to_whom_is_open(&addresses)?, 0, "{:?}, before {}", scene.rules, row.what);
    addresses.iter().try_for_each(|&from| (row.happens)(scene, from))?;
    let opens = if scene.rules == Rules::Wiki { row.wiki_opens } else { row.ours_opens };
    let open = scene.to_whom_is_open(&addresses)?;
    println!("{:?}: {}: open to {open} of {TRIES}", scene.rules, row.what);
    assert_eq!(open, if opens { TRIES } else { 0 }, "{:?}: {}", scene.rules, row.what);
    Ok(())
}
