//! A knock is 256 independent random bytes to whoever lacks the keys, and so is an answer: chi-square at every byte
//! position, and no aligned 8 bytes twice. Nonces come from a generator with a fixed seed, so that the outcome is always
//! the same.
//!
//! At a position, 10,000 knocks fall into 256 cells, 39 expected in each. Under randomness the sum has the chi-square
//! distribution of 255 degrees of freedom. Its bounds here are those that chance leaves, upwards and downwards, with
//! a probability of 0.01 / 1536 each: 3 sets, 256 positions and 2 sides make 1536 looks (Bonferroni), so that
//! random knocks would fail one set of nonces in a hundred. Downwards counts as well: a counter is too even to be chance.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as it does")]

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::answer;
use postern_proto::{
    Answer, ClientKeys, ClientSecret, GateId, GateKeys, KNOCK_LEN, Nonce, Outcome, Payload, Proof, Request,
    Services, Source, WallTime, seal,
};
use ring::hmac;

const KNOCKS: u64 = 10_000;
/// The quantiles of chi-square with 255 degrees of freedom at 0.01 / 1536 and 1 - 0.01 / 1536.
const BOUNDS: std::ops::RangeInclusive<f64> = 168.266..=365.697;

type Knock = [u8; KNOCK_LEN];

/// Random bytes with a fixed seed: HMAC-SHA256 of a counter.
struct Generator(hmac::Key, u64);

impl Generator {
    fn new(seed: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, seed.as_bytes()), 0)
    }

    fn draw<const N: usize>(&mut self) -> [u8; N] {
        self.1 += 1;
        *hmac::sign(&self.0, &self.1.to_be_bytes()).as_ref().first_chunk().unwrap()
    }
}

fn payload(at: WallTime) -> Payload {
    Payload {
        at,
        source: Source::Stated(IpAddr::from([192, 0, 2, 7])),
        request: Request::Open {
            services: Services::new(vec!["ssh".parse().unwrap()]).unwrap(),
            window: None,
            from_port: None,
        },
        proof: Proof::None,
    }
}

/// 10,000 knocks of so many clients, one after another, `step` microseconds apart.
fn knocks(seed: &str, clients: usize, step: u64) -> Vec<Knock> {
    let mut random = Generator::new(seed);
    let gate = GateId::from_bytes(random.draw());
    let clients: Vec<_> =
        (0..clients).map(|_| ClientKeys::derive(&gate, &ClientSecret::from_bytes(random.draw()))).collect();
    let gate = GateKeys::derive(&gate);
    (0..KNOCKS)
        .zip(clients.iter().cycle())
        .map(|(i, client)| {
            let at = WallTime::from_micros(1_800_000_000_000_000 + i * step);
            seal(&gate, client, &payload(at), Nonce::from_random(random.draw()))
        })
        .collect()
}

fn of_many_clients() -> Vec<Knock> {
    knocks("many clients, seven epochs", 1000, 20_000)
}

fn of_one_client() -> Vec<Knock> {
    knocks("one client, one epoch", 1, 1000)
}

/// The answers to as many knocks of one client, all of which it asks for alike.
fn answers() -> Vec<Knock> {
    let mut random = Generator::new("answers");
    let gate = GateId::from_bytes(random.draw());
    let key = ClientKeys::derive(&gate, &ClientSecret::from_bytes(random.draw())).answer;
    let seen = "192.0.2.7:40000".parse().unwrap();
    let made = (0..KNOCKS).map(|i| {
        let at = WallTime::from_micros(1_800_000_000_000_000 + i * 1000);
        let outcome = Outcome::Opened { until: at.after(Duration::from_secs(30)) };
        answer::seal(
            &gate,
            &key,
            &random.draw(),
            &Answer { at, seen, outcome },
            Nonce::from_random(random.draw()),
        )
    });
    made.collect()
}

/// Positions at which the bytes of these knocks are not random, with their chi-square.
fn biased(knocks: &[Knock]) -> Vec<(usize, f64)> {
    let chi_square = |position: usize| {
        let mut cells = [0_u32; 256];
        for knock in knocks {
            cells[usize::from(knock[position])] += 1;
        }
        let expected = f64::from(u32::try_from(knocks.len()).unwrap()) / 256.0;
        cells.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum::<f64>()
    };
    (0..KNOCK_LEN)
        .map(|position| (position, chi_square(position)))
        .filter(|(_, sum)| !BOUNDS.contains(sum))
        .collect()
}

#[test]
fn a_thousand_clients_over_several_epochs() {
    assert_eq!(biased(&of_many_clients()), []);
}

#[test]
fn one_client_in_one_epoch() {
    assert_eq!(biased(&of_one_client()), []);
}

#[test]
fn the_answers_to_one_client() {
    assert_eq!(biased(&answers()), []);
}

#[test]
fn no_two_knocks_or_answers_share_an_aligned_block() {
    let knocks = [of_many_clients(), of_one_client(), answers()].concat();
    let blocks: HashSet<&[u8]> = knocks.iter().flat_map(|knock| knock.chunks(8)).collect();
    assert_eq!(blocks.len(), knocks.len() * KNOCK_LEN / 8);
}

/// The test sees what other protocols show: a version byte, a counter, the start of a hint without a veil, a bit that is
/// one more often than not.
#[test]
fn knocks_that_are_not_random_are_found_out() {
    let random = of_one_client();
    let with = |change: fn(usize, &mut Knock)| {
        let mut knocks = random.clone();
        for (i, knock) in knocks.iter_mut().enumerate() {
            change(i, knock);
        }
        biased(&knocks).into_iter().map(|(position, _)| position).collect::<Vec<_>>()
    };
    assert_eq!(with(|_, _| ()), [] as [usize; 0]);
    assert_eq!(with(|_, knock| knock[40] = 1), [40], "a constant");
    assert_eq!(with(|i, knock| knock[255] = i.to_le_bytes()[0]), [255], "a counter");
    assert_eq!(with(|_, knock| knock[..8].copy_from_slice(b"the hint")), [0, 1, 2, 3, 4, 5, 6, 7], "no veil");
    assert_eq!(with(|i, knock| knock[100] |= u8::from(i % 4 == 0) << 3), [100], "a bit set too often");
}
