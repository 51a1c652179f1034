//! What the administrator runs beside the gate.

pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod control;
pub(crate) mod explain;
pub(crate) mod guard;
pub(crate) mod import_knockd;
pub(crate) mod init;
mod ports;
mod print;
pub(crate) mod privileges;
pub(crate) mod remove;
pub(crate) mod rules;
pub(crate) mod sequence;
pub(crate) mod state;

use ring::rand::{SecureRandom, SystemRandom};

/// Bytes from the system's secure random source.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(bytes)
}
