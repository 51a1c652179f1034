//! SIGKILL to front, warden, supervisor or all of them, hundreds of times, while knocks come in: before a knock is
//! recorded, after it is and before it has its rule, and after that. Whenever it comes, no knock opens twice, no lease
//! outlives its end, and what is others' stays as it is (P4, P5, P9).
//!
//! Each round sends some knocks and kills a moment later. At that moment all processes of the gate are stopped, so that
//! disk and firewall can be read as the kill has left them; then those that it did not hit go on. Each knock is from an
//! address of its own, which tells what it has opened. When to kill is drawn at random, near to where it has hit the
//! moment that was hit the least.

use std::hint;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{KNOCK_PORTS, Role, SSH, Settings, Variant};
use postern_tests::knocks::{Knock, random};
use postern_tests::netns::Family;
use postern_tests::process::{Process, succeed};
use postern_tests::wait::{LONG, wait_for};

use crate::crowd::Crowd;
use crate::world::World;

mod aim;
mod book;
mod scene;

use aim::Aim;
use book::Book;
use scene::{Scene, Staff, of_others};

const WINDOW: Duration = Duration::from_secs(3);
/// The kernel counts whole seconds, and a knock may wait for a front that is starting.
const SLACK: Duration = Duration::from_secs(2);
/// Knocks that a kill comes amid. The first of them says which moment it was.
const AMID: usize = 3;
/// How many of the latest knocks are sent again in each round; in the end, all are.
const REPLAYS: usize = 60;
/// Where the moments are not hit by then, something is wrong with the aim.
const MOST_ROUNDS: u16 = 500;
/// Addresses that a round takes: one that knocks until the gate is back, one behind the replays, those amid.
const ADDRESSES: u16 = MOST_ROUNDS * 5 + 10;
/// The seed, where another one is not wanted.
const SEED: &str = "POSTERN_SEED";

#[test]
fn no_kill_opens_twice_or_leaves_anything_through_iptables_nft() -> Result<()> {
    Rounds::begin(Variant::Nft)?.all(200, 20)
}

#[test]
fn no_kill_opens_twice_or_leaves_anything_through_iptables_legacy() -> Result<()> {
    Rounds::begin(Variant::Legacy)?.all(40, 4)
}

#[test]
fn no_kill_opens_twice_or_leaves_anything_through_nftables() -> Result<()> {
    Rounds::begin(Variant::Nftables)?.all(120, 10)
}

/// Waits this long as nearly as can be: whoever sleeps on a busy machine wakes when others let him.
fn wait(delay: Duration) {
    const SHORT: Duration = Duration::from_millis(2);
    let begun = Instant::now();
    if delay > SHORT {
        thread::sleep(delay);
    }
    while begun.elapsed() < delay {
        hint::spin_loop();
    }
}

/// What a kill leaves of a knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeCommit,
    AfterCommit,
    AfterRule,
}

impl Moment {
    const ALL: [Self; 3] = [Self::BeforeCommit, Self::AfterCommit, Self::AfterRule];
}

struct Rounds {
    world: World,
    crowd: Crowd,
    aim: Aim,
    book: Book,
    /// The rules of others, before the gate was started first.
    before: [String; 2],
}

impl Rounds {
    fn begin(variant: Variant) -> Result<Self> {
        let settings = Settings {
            variant,
            window_secs: u32::try_from(WINDOW.as_secs())?,
            // No replay of this test is refused for its age.
            tolerance_secs: 600,
            log: "info",
            ..Settings::default()
        };
        let mut world = World::new(settings)?;
        world.listen(&[SSH])?;
        let crowd = Crowd::join(&mut world, ADDRESSES)?;
        for family in Family::ALL {
            for rule in
                ["-A INPUT -p tcp --dport 9 -j DROP", "-N other", "-A other -j RETURN", "-A INPUT -j other"]
            {
                let mut command = world.gate.firewall(family, "");
                command.arg("-w").args(rule.split(' '));
                succeed(command, b"", LONG)?;
            }
        }
        let before = [world.gate.saved(Family::V4)?, world.gate.saved(Family::V6)?];
        world.gate.start(&[])?;
        let seed =
            std::env::var(SEED).map_or_else(|_| Ok(u64::from_le_bytes(random())), |seed| seed.parse())?;
        println!("{SEED}={seed}");
        Ok(Self { world, crowd, aim: Aim::new(seed), book: Book::default(), before })
    }

    /// So many rounds, so many of them at each moment, and what has to hold after all of them.
    fn all(mut self, rounds: u16, each: usize) -> Result<()> {
        let (begun, mut done) = (Instant::now(), 0);
        while done < rounds || Moment::ALL.iter().any(|&moment| self.aim.hits(moment) < each) {
            ensure!(done < MOST_ROUNDS, "{done} rounds have hit {:?}", self.hits());
            self.one().with_context(|| format!("round {done}, {SEED}={}\n{}", self.aim.seed, self.log()))?;
            done += 1;
        }
        println!("{done} rounds in {:?}: {:?}", begun.elapsed(), self.hits());
        let ended = self.end();
        ended.with_context(|| format!("after {done} rounds, {SEED}={}\n{}", self.aim.seed, self.log()))
    }

    /// The last that the log says.
    fn log(&self) -> String {
        let lines = self.world.gate.running().map(Process::lines).unwrap_or_default();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn hits(&self) -> [(Moment, usize); Moment::ALL.len()] {
        Moment::ALL.map(|moment| (moment, self.aim.hits(moment)))
    }

    fn one(&mut self) -> Result<()> {
        self.is_alive()?;
        self.replay(REPLAYS)?;
        self.book.opened()?;

        let (victims, delay) = (self.aim.victims(), self.aim.delay());
        let amid = (0..AMID).map(|_| self.fresh()).collect::<Result<Vec<_>>>()?;
        let staff = Staff::of(&self.world.gate)?;
        self.send(&amid)?;
        wait(delay);
        staff.strike(victims)?;
        let scene = Scene::read(&self.world.gate)?;
        self.book.look_at(&scene, victims)?;
        ensure!(scene.others == of_others(&self.before[0]), "others' rules are now\n{}", scene.others);
        let (from, knock) = &amid[0];
        self.aim.has_hit(scene.moment(knock, *from), delay);
        staff.go_on()?;
        if victims.contains(&Role::Supervisor) {
            staff.wait_for_end()?;
            self.starts_again()?;
        }
        Ok(())
    }

    fn starts_again(&mut self) -> Result<()> {
        self.book.hear(&self.world.gate.running()?.lines())?;
        self.world.gate.start(&[])?;
        self.book.hear_anew();
        Ok(())
    }

    /// A fresh knock from an address of its own, not sent yet.
    fn fresh(&mut self) -> Result<(IpAddr, Knock)> {
        let alice = &self.world.alice;
        Ok((self.crowd.address(Family::V4)?, alice.seal(&alice.asks_for("ssh")?)))
    }

    fn send(&mut self, knocks: &[(IpAddr, Knock)]) -> Result<()> {
        for (from, knock) in knocks {
            self.book.enter(*from, *knock);
        }
        self.crowd.send_all(knocks, &self.world.gate, KNOCK_PORTS[0])
    }

    /// A fresh knock opens. It is sent again and again, while nobody listens too; it opens once. Where there was no warden
    /// for longer than its window, it was recorded and came to nothing: then another one opens.
    fn is_alive(&mut self) -> Result<()> {
        let (mut knock, mut fresh) = (self.fresh()?, Instant::now());
        wait_for("a knock to open", LONG, || {
            if fresh.elapsed() > WINDOW {
                (knock, fresh) = (self.fresh()?, Instant::now());
            }
            self.send(&[knock])?;
            self.has_opened(knock.0)
        })
    }

    /// Sends knocks again, the latest of them, and waits until they have been decided: they are when a fresh one behind
    /// them has opened.
    fn replay(&mut self, latest: usize) -> Result<()> {
        // The kernel's ring has room for them, and the warden's pace for those that were never recorded.
        for knocks in self.book.latest(latest).chunks(200) {
            self.send(knocks)?;
            let last = self.fresh()?;
            self.send(&[last])?;
            wait_for("the knock behind the replays to open", LONG, || self.has_opened(last.0))?;
        }
        Ok(())
    }

    fn has_opened(&mut self, from: IpAddr) -> Result<Option<()>> {
        self.book.hear(&self.world.gate.running()?.lines())?;
        Ok(self.book.was_granted(from).then_some(()))
    }

    fn end(&mut self) -> Result<()> {
        self.is_alive()?;
        self.replay(usize::MAX)?;
        let opened = self.book.opened()?;
        // By now each knock that was ever sent has opened or never will: nothing but the one behind the replays does.
        self.world.gate.kill()?;
        self.world.gate.start(&[])?;
        self.book.hear_anew();
        self.is_alive()?;
        let sent = self.book.latest(usize::MAX).len();
        self.replay(usize::MAX)?;
        let more = self.book.latest(usize::MAX).len() - sent;
        assert_eq!(self.book.opened()?, opened + 1 + more, "of {sent}, {opened} had opened");
        self.all_leases_end()?;
        println!("{opened} of {sent} knocks opened");

        self.crowd.is_let_in(&self.world.gate, &self.world.alice)?;
        self.world.gate.stop()?;
        self.world.gate.administer(&["remove"])?;
        assert_eq!([self.world.gate.saved(Family::V4)?, self.world.gate.saved(Family::V6)?], self.before);
        Ok(())
    }

    /// Every lease ends on time: the door is shut to every address then, and soon there is no rule.
    fn all_leases_end(&self) -> Result<()> {
        let (sent, window) = (Instant::now(), WINDOW + Duration::from_secs(1));
        wait_for("the last window's end", LONG, || Ok((sent.elapsed() > window).then_some(())))?;
        let knocks = self.book.latest(usize::MAX);
        let everybody: Vec<_> = knocks.into_iter().map(|(from, _)| from).collect();
        let open = self.crowd.to_whom_is_open(&everybody, self.world.gate.at(Family::V4, SSH))?;
        ensure!(open.is_empty(), "open after the end: {open:?}");
        let gone = || Ok(self.world.gate.grants(Family::V4)?.is_empty().then_some(()));
        wait_for("the end of all grants", LONG, gone)
    }
}
