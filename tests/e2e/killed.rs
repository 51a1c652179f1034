//! Every window ends by the kernel's own clock, though nobody is left to end it (P5).

use anyhow::Result;
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe};

use crate::world::World;

#[test]
fn the_window_ends_without_posternd_through_iptables_nft() -> Result<()> {
    the_window_ends_without_posternd(Variant::Nft)
}

#[test]
fn the_window_ends_without_posternd_through_iptables_legacy() -> Result<()> {
    the_window_ends_without_posternd(Variant::Legacy)
}

#[test]
fn the_window_ends_without_posternd_through_nftables() -> Result<()> {
    the_window_ends_without_posternd(Variant::Nftables)
}

fn the_window_ends_without_posternd(variant: Variant) -> Result<()> {
    let mut world = World::running(Settings { variant, window_secs: 5, ..Settings::default() })?;
    for family in Family::ALL {
        let opened = world.opens(family)?;
        world.gate.kill()?;
        assert_eq!(
            probe(&world.home, world.gate.at(family, SSH))?,
            Seen::Open,
            "nobody is left, the window is not over"
        );
        assert_eq!(probe(&world.stranger, world.gate.at(family, SSH))?, Seen::Nothing, "the guard stands");
        world.shuts_on_time(opened)?;
        world.gate.start(&[])?;
    }
    world.opens(Family::V4).map(drop)
}
