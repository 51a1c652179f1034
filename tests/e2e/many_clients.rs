//! A key file of thousands: it is read again and again, and no knock is missed meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::gate::Settings;
use postern_tests::knocks::Client;
use postern_tests::netns::Family;

use crate::world::World;

/// Enough that to read them takes many knocks' time.
const CLIENTS: usize = 3_000;
const RELOADS: usize = 5;
const APART: Duration = Duration::from_millis(5);

#[test]
fn no_knock_is_missed_while_a_long_key_file_is_read_again() -> Result<()> {
    let mut world = World::new(Settings { log: "info", ..Settings::default() })?;
    let mut clients = vec![world.alice.clone()];
    for number in 1..CLIENTS {
        let mut client = Client::new(world.gate.id(), &format!("client-{number}"), &["ssh"])?;
        if number % 2 == 0 {
            client.take_identity()?;
        }
        clients.push(client);
    }
    world.gate.write_clients(&clients.iter().collect::<Vec<_>>())?;
    world.gate.start(&[])?;
    let is_over = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> Result<u64> {
        let sender = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !is_over.load(Ordering::Relaxed) {
                // The first and the last of the file in turns.
                let client = if sent % 2 == 0 { &clients[0] } else { &clients[CLIENTS - 1] };
                world.send(&world.home, Family::V4, &client.seal(&client.asks_for("ssh")?))?;
                sent += 1;
                thread::sleep(APART);
            }
            Ok(sent)
        });
        let reloaded = (0..RELOADS).try_for_each(|_| world.gate.reload().map(drop));
        is_over.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("a sender does not panic");
        reloaded.and(sent)
    })?;
    let counted = world.gate.wait_for_received(sent)?;
    ensure!(sent >= RELOADS as u64 && counted.accepted == sent, "{sent} were sent; {counted:?}");
    Ok(())
}
