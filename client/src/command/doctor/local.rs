//! What can be looked at without the gate: the configuration, the names, the ways out of this host.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use postern_proto::profile::Host;

use super::findings::Findings;
use crate::gate::{Gate, Options};
use crate::knock::routed;
use crate::report::joined;
use crate::resolve::{Family, first, resolve};
use crate::rounds::plain;

/// Others may do this with what is in a folder: replace it.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Where to knock.
pub(super) struct Way {
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The address that other programs take first of each name.
    pub(super) firsts: Vec<(Host, IpAddr)>,
}

/// The file was read: one whose mode lets others in is not. Who else may read it by an access list, a backup or another
/// host's mount is not looked at.
pub(super) fn configuration(path: &Path, findings: &mut Findings) {
    findings
        .ok("configuration", format_args!("{} reads, and its mode lets nobody else read it", path.display()));
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let Some(folder) = path.parent() else { return };
    match fs::metadata(folder) {
        Ok(metadata) if metadata.permissions().mode() & WRITABLE_BY_OTHERS != 0 => {
            let mode = metadata.permissions().mode() & 0o7777;
            let message = format!(
                "others can put another file into its place in {} (mode {mode:04o})",
                folder.display()
            );
            findings.warning("configuration-folder", message, &format!("chmod 700 {}", folder.display()));
        }
        Ok(_) => {
            findings
                .ok("configuration-folder", format_args!("nobody else can write in {}", folder.display()));
        }
        Err(error) => {
            let message = format!("{}: {error}", folder.display());
            findings.warning("configuration-folder", message, "look at who can write there");
        }
    }
}

/// Whether there is a key that signs, where the gate wants that.
pub(super) fn identity(gate: &Gate, findings: &mut Findings) -> bool {
    match gate.knocker.signer() {
        Ok(None) => {}
        Ok(Some(signer)) => {
            findings.ok("identity", format_args!("knocks are signed by {signer}"));
            if signer.needs_touch() {
                findings.note(
                    "few-probes",
                    "each knock takes a touch of the security key: addresses and ports are probed until one answers, other \
                     dates are not tried",
                );
            }
        }
        Err(error) => {
            findings.fault(
                "identity",
                error,
                "without a signature the gate refuses whatever this client asks",
            );
            return false;
        }
    }
    true
}

/// The addresses to which there is a way.
pub(super) async fn way(gate: &Gate, options: &Options, findings: &mut Findings) -> Option<Way> {
    let Way { addresses, firsts } = names(gate, options.family, findings).await?;
    let port = gate.profile().ports[0].get();
    let routes: Vec<_> = addresses.into_iter().map(|to| (to, route(to, port))).collect();
    let has_one = routes.iter().any(|(_, route)| route.is_ok());
    let mut reachable = BTreeSet::new();
    for (to, route) in routes {
        match route {
            Ok(from) => {
                reachable.insert(to);
                findings.ok("route", format_args!("{to} is knocked at from {from} ({})", Family::of(to)));
            }
            Err(reason) if has_one => {
                findings.note("no-route", format_args!("this host has no way to {to}: {reason}"));
            }
            Err(reason) => {
                let message = format!("this host has no way to {to}: {reason}");
                findings.fault("no-route", message, "look at its network: ip route");
            }
        }
    }
    has_one.then_some(Way { addresses: reachable, firsts })
}

async fn names(gate: &Gate, family: Option<Family>, findings: &mut Findings) -> Option<Way> {
    let mut way = Way { addresses: BTreeSet::new(), firsts: Vec::new() };
    let mut failed = Vec::new();
    for host in &gate.profile().addresses {
        let resolved = resolve(std::slice::from_ref(host), family).await;
        match resolved.require_one() {
            Ok(()) if host.as_str().parse::<IpAddr>().is_ok() => {}
            Ok(()) => {
                let addresses: Vec<_> = resolved.addresses.iter().collect();
                findings.ok("name", format_args!("{host} is {}", joined(&addresses)));
                if let Ok(first) = first(host, family).await {
                    way.firsts.push((host.clone(), first));
                }
            }
            Err(error) => failed.push(error.to_string()),
        }
        way.addresses.extend(resolved.addresses);
    }
    for message in failed {
        let advice = "correct `addresses` in the configuration, or look at this host's DNS";
        if way.addresses.is_empty() {
            findings.fault("name-unresolved", message, advice);
        } else {
            findings.warning("name-unresolved", message, advice);
        }
    }
    (!way.addresses.is_empty()).then_some(way)
}

/// The local address from which it goes there, or why it does not. Nothing is sent.
fn route(to: IpAddr, port: u16) -> Result<IpAddr, String> {
    match routed(SocketAddr::new(to, port)) {
        Ok(local) => Ok(local),
        // Only sending tells whether a firewall allows it.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err("it is a broadcast address".to_owned())
        }
        Err(error) => Err(plain(&error)),
    }
}
