//! The crate as a library: what a program of somebody else's does with it.

use std::thread;
use std::time::Duration;

use postern_client::{Error, Gate, Options};
use postern_proto::{Outcome, Refusal, WallTime};

use crate::gate::Gate as Listening;
use crate::home::Home;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What a client that must not block demands of a library.
const fn is_send<T: Send>(value: T) -> T {
    value
}

fn host_time() -> WallTime {
    WallTime::from(std::time::SystemTime::now())
}

#[test]
fn a_program_knocks_and_closes_and_dates_its_knocks_by_its_own_clock() {
    for ahead in [30, -30] {
        knocks_and_closes(ahead);
    }
}

fn knocks_and_closes(ahead: i64) {
    let mut listening = Listening::answering(&["127.0.0.1"], 1, 22);
    listening.ahead = ahead;
    let gate = Gate::from_profile(listening.profile.clone()).unwrap();
    let ssh = ["ssh".parse().unwrap()];
    let options = Options::default();
    let begin = host_time();
    thread::scope(|scope| {
        let served = scope.spawn(|| {
            let mut last = begin;
            for outcome in [listening.opened(), Outcome::Refused(Refusal::Busy), Outcome::Closed] {
                let arrived = listening.knock();
                // By the clock of this host, like those of other processes, however far the gate's is off.
                let at = arrived.knock.at();
                assert!(last < at && at <= host_time(), "{at} is not between {last} and {}", host_time());
                last = at;
                assert_eq!(arrived.services(), ["ssh"]);
                listening.answer(&arrived, outcome);
            }
        });
        let opened = block_on(is_send(gate.knock(&ssh, &options))).unwrap().unwrap();
        assert!((opened.offset.as_millis() - ahead * 1000).abs() < 2000, "{:?}", opened.offset);
        assert_eq!(opened.let_in().to_string(), "127.0.0.1");
        let refused = block_on(gate.knock(&ssh, &options)).unwrap_err();
        let Error::Refused(refused) = refused else { panic!("{refused}") };
        assert_eq!(refused.refusal, Refusal::Busy);
        assert!(block_on(is_send(gate.close(&ssh, &options))).unwrap().is_some());
        served.join().unwrap();
    });
}

#[test]
fn a_gate_is_loaded_from_the_configuration() {
    let listening = Listening::listen(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &listening.profile);
    let path = home.config();
    let gate = Gate::load(&"home".parse().unwrap(), Some(&path)).unwrap();
    assert_eq!((gate.name(), gate.answers(), gate.services().len()), ("home", false, 2));
    assert!(block_on(gate.knock(&[], &Options::default())).unwrap().is_none());
    assert_eq!(listening.knock().services(), ["ssh", "vpn"]);

    let unknown = Gate::load(&"work".parse().unwrap(), Some(&path)).err().unwrap();
    assert_eq!(unknown.exit_code(), 3);
    let mut bare = listening.profile.clone();
    bare.ports.clear();
    assert!(matches!(Gate::from_profile(bare), Err(Error::Incomplete { .. })));
    let mut options = Options::default();
    options.timeout = Duration::from_millis(100);
    let mut silent = listening.profile.clone();
    silent.answers = true;
    let gate = Gate::from_profile(silent).unwrap();
    assert_eq!(block_on(gate.knock(&[], &options)).unwrap_err().exit_code(), 5);
}
