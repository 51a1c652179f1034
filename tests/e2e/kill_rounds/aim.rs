//! Whom to kill, and when.

use std::time::Duration;

use postern_tests::gate::Role;

use super::Moment;

/// Whom a kill can hit.
const VICTIMS: [&[Role]; 4] =
    [&[Role::Front], &[Role::Warden], &[Role::Supervisor], &[Role::Supervisor, Role::Front, Role::Warden]];
const LONGEST_DELAY: Duration = Duration::from_millis(10);

/// Draws victims and delays; the same from the same seed, as long as the same is hit.
pub(super) struct Aim {
    pub(super) seed: u64,
    state: u64,
    /// Those still to be hit before anybody is hit again: who alone dies again and again is waited for longer and longer.
    victims: Vec<&'static [Role]>,
    /// The delays after which each moment was hit.
    hits: [Vec<Duration>; Moment::ALL.len()],
}

impl Aim {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, state: seed, victims: vec![], hits: [const { Vec::new() }; Moment::ALL.len()] }
    }

    /// Uniform in `0..below`, as nearly as matters here (`SplitMix64`).
    pub(super) fn draw(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    pub(super) fn victims(&mut self) -> &'static [Role] {
        if self.victims.is_empty() {
            self.victims = VICTIMS.to_vec();
        }
        let drawn = self.draw(self.victims.len() as u64);
        self.victims.swap_remove(usize::try_from(drawn).expect("an index"))
    }

    /// As a rule near a delay that has hit the moment that was hit the least; any delay now and then, and until then.
    pub(super) fn delay(&mut self) -> Duration {
        let any = Duration::from_micros(self.draw(10_000)).min(LONGEST_DELAY);
        let (strays, which) = (self.draw(4) == 0, self.draw(u64::MAX));
        let rarest = self.hits.iter().min_by_key(|hits| hits.len()).expect("there are moments");
        let at = usize::try_from(which % rarest.len().max(1) as u64).expect("an index");
        match rarest.get(at) {
            Some(&near) if !strays => {
                let near =
                    near.as_secs_f64() * (0.7 + 0.6 * (any.as_secs_f64() / LONGEST_DELAY.as_secs_f64()));
                Duration::from_secs_f64(near)
            }
            _ => any,
        }
    }

    pub(super) fn has_hit(&mut self, moment: Moment, delay: Duration) {
        self.hits[moment as usize].push(delay);
    }

    pub(super) fn hits(&self, moment: Moment) -> usize {
        self.hits[moment as usize].len()
    }
}
