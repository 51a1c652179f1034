//! What is owed to whom: the ledger on a real disk, with no command run.

use std::time::Duration;

use tempfile::TempDir;

use super::*;

struct Bench {
    folder: TempDir,
    runner: Runner,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runner = start(&folder);
        Self { folder, runner }
    }

    /// What the next runner finds.
    fn after_a_crash(self) -> Runner {
        drop(self.runner);
        start(&self.folder)
    }
}

fn start(folder: &TempDir) -> Runner {
    let argv = Argv::new(vec!["/bin/true".to_owned(), "%IP%".to_owned()]);
    let always = ByFamily { ipv4: argv.clone(), ipv6: argv };
    let commands = Commands {
        on_open: always.clone(),
        on_close: always,
        deadline: Duration::from_secs(1),
        ports: vec![],
    };
    let table = [("door".parse().unwrap(), commands)].into();
    Runner::start(&folder.path().join("ledger"), table).unwrap()
}

fn lease(source: &str) -> LeaseKey {
    LeaseKey {
        client: "alice".parse().unwrap(),
        service: "door".parse().unwrap(),
        source: source.parse().unwrap(),
        from_port: None,
    }
}

/// As a warden asks for it that granted so long ago.
fn open(source: &str, ago: u64, lasts: u64) -> Errand {
    let begun = Now::read().wall.before(Duration::from_secs(ago));
    let lasts = Duration::from_secs(lasts);
    Errand::Open { lease: lease(source), until: begun.after(lasts), lasts }
}

#[test]
fn what_is_shut_before_it_was_looked_at_is_not_begun() {
    let mut bench = Bench::new();
    let close = Errand::Close(lease("192.0.2.1"));
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 60), close, open("192.0.2.2", 0, 60)]);
    assert!(bench.runner.leases.contains_key(&lease("192.0.2.2")));
    assert_eq!((bench.runner.leases.len(), bench.runner.opening.len()), (1, 1));
    let next = bench.after_a_crash();
    assert_eq!(next.leases.keys().collect::<Vec<_>>(), [&lease("192.0.2.2")]);
}

#[test]
fn what_is_heard_late_ends_when_it_was_meant_to() {
    let mut bench = Bench::new();
    bench.runner.carry_out(vec![open("192.0.2.1", 61, 60), open("192.0.2.2", 50, 60)]);
    assert_eq!(bench.runner.leases.len(), 1, "one was over already");
    let now = Now::read().boot;
    assert!(bench.runner.next_due(BootTime::from_boot(Duration::ZERO)).is_none(), "it is being opened");
    let due = bench.runner.leases[&lease("192.0.2.2")].due;
    assert!(due.since(now) <= Duration::from_secs(10), "{:?}", due.since(now));
    // Renewed, and that was long ago too.
    bench.runner.carry_out(vec![open("192.0.2.2", 40, 60)]);
    let due = bench.runner.leases[&lease("192.0.2.2")].due;
    assert!((15..=20).contains(&due.since(now).as_secs()), "{:?}", due.since(now));
    assert_eq!(bench.runner.opening.len(), 1, "it is opened once");
}

/// As a door of knockd that opens, and another one that shuts.
#[test]
fn a_command_without_an_end_is_run_each_time() {
    let mut bench = Bench::new();
    for commands in bench.runner.commands.values_mut() {
        commands.on_close = ByFamily { ipv4: None, ipv6: None };
    }
    let was_run = |bench: &mut Bench| {
        bench.runner.conclude(Done { lease: lease("192.0.2.1"), when: When::Open, result: Ok(()) });
        bench.runner.shut_due(Now::read().boot);
    };
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 60)]);
    // While it runs: it is run once more when it has.
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 60)]);
    assert_eq!(bench.runner.opening.len(), 1);
    was_run(&mut bench);
    assert_eq!(bench.runner.opening.len(), 2);
    was_run(&mut bench);
    assert!(bench.runner.leases.is_empty());
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 60)]);
    assert_eq!(bench.runner.opening.len(), 3);
    was_run(&mut bench);
    assert!(bench.after_a_crash().leases.is_empty());
}

#[test]
fn commands_without_an_end_that_are_asked_for_at_once_are_run_each_time() {
    let mut bench = Bench::new();
    for commands in bench.runner.commands.values_mut() {
        commands.on_close = ByFamily { ipv4: None, ipv6: None };
    }
    bench.runner.carry_out((0..3).map(|_| open("192.0.2.1", 0, 60)).collect());
    for runs in 1..=3 {
        assert_eq!(bench.runner.opening.len(), runs, "one behind the other");
        bench.runner.conclude(Done { lease: lease("192.0.2.1"), when: When::Open, result: Ok(()) });
        bench.runner.shut_due(Now::read().boot);
    }
    assert_eq!((bench.runner.opening.len(), bench.runner.leases.len()), (3, 0));
    // While one runs, too.
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 60)]);
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 60)]);
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 60)]);
    assert_eq!(bench.runner.leases[&lease("192.0.2.1")].again.len(), 2);
}

#[test]
fn what_was_shut_stays_shut_after_a_crash() {
    let mut bench = Bench::new();
    bench.runner.carry_out(vec![open("192.0.2.1", 0, 3_600)]);
    bench.runner.carry_out(vec![Errand::Close(lease("192.0.2.1"))]);
    let mut next = bench.after_a_crash();
    next.shut_due(Now::read().boot);
    assert_eq!((next.closing.len(), next.opening.len()), (1, 0));
}
