//! The rules open to their sequence, to nothing less, to nobody else and for no longer; and they come and go as they say.

use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::gate::SSH;
use postern_tests::netns::Family;
use postern_tests::probe::{Connection, Seen, udp};
use postern_tests::wait::{LONG, wait_for};

use super::scene::{Rules, Scene, UNRELATED, Wanted};
use crate::neighbours::at_once;

/// Of any length, TCP and UDP, with a port that comes twice.
const SEQUENCES: [&str; 7] = [
    "7000",
    "7000:udp",
    "7000,8000:udp",
    "8000:udp,7000:udp",
    "7000,8000:udp,7000",
    "7000,6000:udp,8000,6000,9000:udp",
    "7001,9002:udp,7003,9004,7005:udp,9006,7007,9008,7001,9010,7011,9012:udp,7013,9014,7015:udp,9016",
];

#[test]
fn the_wikis_and_ours_open_to_the_sequence_and_to_nothing_else() -> Result<()> {
    let all: Vec<_> = [Rules::Wiki].into_iter().chain(Rules::OURS).collect();
    at_once(&all, |&rules| {
        let mut scene = Scene::new(rules, &Wanted::wiki())?;
        opens_to_the_sequence_alone(&mut scene)?;
        // Nobody who begins in another way comes in either.
        for wrong in [&[1, 2][..], &[2, 1, 0], &[0, 2], &[0, 0, 2], &[0, 1, 1], &[1, 2, 0, 2]] {
            let from = scene.address()?;
            scene.steps(from, wrong)?;
            ensure!(!scene.is_open(from)?, "{rules:?} opens to {wrong:?}");
        }
        Ok(())
    })
    .map(drop)
}

#[test]
fn ours_open_to_sequences_of_any_length() -> Result<()> {
    at_once(&Rules::FEW, |&rules| {
        SEQUENCES.iter().try_for_each(|steps| {
            opens_to_the_sequence_alone(&mut Scene::new(rules, &Wanted::steps(*steps))?)
        })
    })
    .map(drop)
}

/// Every beginning of the sequence opens nothing, the whole of it opens, and only to who has sent it.
fn opens_to_the_sequence_alone(scene: &mut Scene) -> Result<()> {
    let what = format!("{:?} {:?}", scene.rules, scene.steps);
    let stranger = scene.address()?;
    for length in 0..scene.steps.len() {
        let from = scene.address()?;
        (0..length).try_for_each(|index| scene.step(from, index))?;
        ensure!(!scene.is_open(from)?, "{what} opens after {length} steps");
    }
    let from = scene.address()?;
    scene.knock(from)?;
    ensure!(scene.is_open(from)?, "{what} does not open");
    ensure!(!scene.is_open(stranger)?, "{what} opens to a stranger");
    for port in scene.steps.iter().map(|step| step.number.get()) {
        let seen = scene.sees(stranger, port)?;
        // Only a step over UDP leaves the port of TCP alone.
        let is_tcp = scene.steps.contains(&format!("{port}/tcp").parse()?);
        ensure!(seen == Seen::Nothing || !is_tcp, "{what}: {port} shows {seen:?}");
    }
    Ok(())
}

#[test]
fn a_door_can_be_one_of_udp() -> Result<()> {
    const DOOR: u16 = 5353;
    at_once(&Rules::FEW, |&rules| {
        let wanted = Wanted { door: "5353/udp", ..Wanted::wiki() };
        let mut scene = Scene::new(rules, &wanted)?;
        let (from, stranger) = (scene.address()?, scene.address()?);
        let server = scene.gate.enter(|| UdpSocket::bind((scene.at(DOOR).ip(), DOOR)))??;
        server.set_read_timeout(Some(LONG))?;
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut byte = [0];
                while let Ok((_, from)) = server.recv_from(&mut byte)
                    && byte != *b"."
                {
                    let _ = server.send_to(&byte, from);
                }
            });
            let answers = |from: IpAddr| {
                let socket = udp(&scene.home, from)?;
                socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                socket.send_to(b"?", scene.at(DOOR))?;
                Ok::<_, anyhow::Error>(socket.recv(&mut [0]).is_ok())
            };
            let result = (|| {
                ensure!(!answers(from)?, "{rules:?} is open");
                scene.knock(from)?;
                ensure!(answers(from)?, "{rules:?} does not open");
                ensure!(!answers(stranger)?, "{rules:?} opens to a stranger");
                ensure!(scene.is_open(stranger)?, "{rules:?} shuts another port");
                Ok(())
            })();
            // From this host itself: the server ends.
            scene
                .gate
                .enter(|| UdpSocket::bind((scene.at(DOOR).ip(), 0))?.send_to(b".", scene.at(DOOR)))??;
            result
        })
    })
    .map(drop)
}

#[test]
fn a_window_ends_on_time_and_sessions_go_on() -> Result<()> {
    const WINDOW: Duration = Duration::from_secs(3);
    at_once(&Rules::FEW, |&rules| {
        let mut scene = Scene::new(rules, &Wanted { window: "3s", ..Wanted::wiki() })?;
        let from = scene.address()?;
        scene.knock(from)?;
        let knocked = Instant::now();
        ensure!(scene.is_open(from)?, "{rules:?} does not open");
        // The host's own address begins the session: it knocks too.
        let own = scene.home.ip(rules.family());
        scene.knock(own)?;
        let mut session = Connection::open(&scene.home, scene.door())?;
        let mut last_open = knocked;
        wait_for("the end of the window", LONG, || {
            let asked = Instant::now();
            let is_open = scene.is_open(from)?;
            if is_open {
                last_open = asked;
            }
            Ok((!is_open).then_some(()))
        })?;
        let lasted = last_open - knocked;
        let slack = Duration::from_secs(1);
        ensure!(lasted + slack > WINDOW && lasted < WINDOW + slack, "{rules:?}: a window of {lasted:?}");
        wait_for("the end of the session's window", LONG, || Ok((!scene.is_open(own)?).then_some(())))?;
        session.echoes("behind its end", LONG)?;
        // It opens again.
        scene.knock(from)?;
        ensure!(scene.is_open(from)?, "{rules:?} does not open again");
        Ok(())
    })
    .map(drop)
}

#[test]
fn nmap_opens_as_in_the_wikis_script() -> Result<()> {
    let all: Vec<_> = [Rules::Wiki].into_iter().chain(Rules::FEW).collect();
    at_once(&all, |&rules| {
        let steps = if rules == Rules::Wiki { "8881,7777,9991" } else { "8881,7777:udp,9991" };
        let scene = Scene::new(rules, &Wanted::steps(steps))?;
        let own = scene.home.ip(rules.family());
        ensure!(!scene.is_open(own)?, "{rules:?} is open");
        scene.nmap()?;
        ensure!(scene.is_open(own)?, "{rules:?} does not open to nmap");
        Ok(())
    })
    .map(drop)
}

#[test]
fn ours_come_and_go_and_come_back_as_their_comments_say() -> Result<()> {
    at_once(&Rules::OURS, |&rules| {
        let mut scene = Scene::new(rules, &Wanted::wiki())?;
        let (saved, restored) = match rules {
            Rules::Nft(_) => ("nft list ruleset", "nft flush ruleset; nft -f /etc/nftables.conf"),
            _ if rules.family() == Family::V4 => {
                ("iptables-save", "iptables-restore < /etc/iptables/rules.v4")
            }
            _ => ("ip6tables-save", "ip6tables-restore < /etc/iptables/rules.v6"),
        };
        let ours = |scene: &Scene| {
            let saved = scene.script(saved)?;
            Ok::<_, anyhow::Error>(saved.lines().filter(|line| line.to_lowercase().contains("knock")).count())
        };
        scene.does_as_said("At boot")?;
        scene.does_as_said("Take out")?;
        assert_eq!(ours(&scene)?, 0, "{rules:?}: something is left");
        let from = scene.address()?;
        ensure!(scene.is_open(from)?, "{rules:?}: they are taken out, and the door is shut");

        for again in ["Load", "At boot"] {
            if again == "Load" {
                scene.does_as_said("Load")?
            } else {
                scene.script(restored)?
            };
            let from = scene.address()?;
            ensure!(!scene.is_open(from)?, "{rules:?}: {again} does not shut");
            scene.knock(from)?;
            ensure!(scene.is_open(from)?, "{rules:?}: {again} does not open");
            ensure!(scene.sees(from, UNRELATED)? == Seen::Open, "{rules:?}: {again} shuts another port");
            scene.does_as_said("Take out")?;
        }
        ensure!(scene.sees(from, SSH)? == Seen::Open, "{rules:?}: they are taken out, and the door is shut");
        Ok(())
    })
    .map(drop)
}

#[test]
fn two_rulesets_do_not_mix() -> Result<()> {
    at_once(&Rules::FEW, |&rules| {
        let mut scene = Scene::new(rules, &Wanted::wiki())?;
        scene.also(&Wanted { name: "WEB", door: "80/tcp", ..Wanted::steps("5000,6000") })?;
        let (ssh, web) = (scene.address()?, scene.address()?);
        scene.knock(ssh)?;
        scene.syn(web, 5000)?;
        scene.syn(web, 6000)?;
        let seen = |from| Ok::<_, anyhow::Error>([scene.sees(from, SSH)?, scene.sees(from, UNRELATED)?]);
        assert_eq!(seen(ssh)?, [Seen::Open, Seen::Nothing], "{rules:?}");
        assert_eq!(seen(web)?, [Seen::Nothing, Seen::Open], "{rules:?}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn the_way_from_the_wikis_rules_to_ours_cuts_nobody_and_leaves_nothing_open() -> Result<()> {
    const PAGE: &str = include_str!("../../../server/docs/migration.md");
    let base = PAGE.lines().skip_while(|line| line.trim() != "*filter").map(str::trim);
    let base: String = base.take_while(|line| *line != "```").flat_map(|line| [line, "\n"]).collect();

    let mut scene = Scene::new(Rules::Wiki, &Wanted::wiki())?;
    let own = scene.home.ip(Family::V4);
    scene.knock(own)?;
    let mut session = Connection::open(&scene.home, scene.door())?;
    session.echoes("through the wiki's door", LONG)?;
    let late = scene.address()?;
    scene.knock(late)?;
    scene.restore_instead(&base)?;
    session.echoes("with neither", LONG)?;
    ensure!(!scene.is_open(late)?, "the door is open with neither");
    scene.become_ours(&Wanted::wiki())?;
    session.echoes("with ours", LONG)?;
    let from = scene.address()?;
    ensure!(!scene.is_open(from)?, "the door is open");
    scene.knock(from)?;
    ensure!(scene.is_open(from)?, "a knock does not open");
    assert_eq!(scene.sees(from, UNRELATED)?, Seen::Nothing);
    Ok(())
}
