//! The other firewalls of this host, as far as they go round the guard or keep out whom it lets in. Everything is looked
//! at and nothing is touched; a program that is missing is no failure.
//!
//! ```text
//! iptables-save, both kinds ─▶ saved ─┐
//!                                     ├─▶ tables ── fate of a packet for each port ──▶ remarks
//! nft -j list ruleset ───────▶ nft ───┘
//! ```
//! A packet that one table accepts may still be dropped by another: an accept of ours overrules nobody but the rest of
//! iptables' own filter table. So whoever drops a guarded port has to be told to let it through; the guard still shuts it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use super::iptables::{self, Iptables, Variant};
use super::{Family, Firewall, FirewallError, nftables};
use crate::warden::guard::Guard;

mod fate;
mod nft;
mod remarks;
mod saved;

use fate::{Base, Chains, Decision, Hook, Packet, Way, decide};

/// Something that an administrator should know of another firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remark {
    /// The guard does not hold, or a grant does not open.
    Warning(String),
    /// Both do, and yet it is as well to know.
    Note(String),
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Warning(text) => write!(f, "warning: {text}"),
            Self::Note(text) => write!(f, "note: {text}"),
        }
    }
}

/// Looks at everything that stands beside a firewall's guard.
pub(super) async fn look(firewall: &Firewall, guard: &Guard) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let surroundings = Surroundings::gather(firewall, &mut remarks).await;
    remarks::judge(&surroundings, firewall, guard, &mut remarks);
    // What holds for both families is said once.
    let mut once = Vec::new();
    for remark in remarks {
        if !once.contains(&remark) {
            once.push(remark);
        }
    }
    once
}

/// Whose a table is.
enum Owner {
    /// A kind of iptables, for one family; `program` is how it is called.
    Iptables { kind: Variant, family: Family, program: &'static str },
    /// Somebody who uses nftables without iptables; the table's family is `ip`, `inet` and so on.
    Nft { family: String },
}

struct Table {
    owner: Owner,
    name: String,
    chains: Chains,
}

impl Table {
    /// Whether packets of a family pass it.
    fn serves(&self, family: Family) -> bool {
        match &self.owner {
            Owner::Iptables { family: own, .. } => *own == family,
            Owner::Nft { family: own } => nft::serves(own, family),
        }
    }
}

/// What one chain does with a packet.
struct Finding<'a> {
    table: &'a Table,
    /// The chain that the kernel calls.
    chain: &'a str,
    base: &'a Base,
    decision: Decision,
}

/// All tables that packets from and to this host pass.
struct Surroundings {
    tables: Vec<Table>,
    /// The kind of iptables that holds the guard; `None` where our own table of nftables does.
    ours: Option<Variant>,
    /// The kind that others call when they call `iptables`.
    usual: Option<Variant>,
    /// Whether firewalld is here, and throws the rules of iptables away when it is reloaded.
    firewalld_flushes: bool,
}

impl Surroundings {
    /// Reads what there is, and remarks on what cannot be read.
    async fn gather(firewall: &Firewall, remarks: &mut Vec<Remark>) -> Self {
        let variant = firewall.iptables().map(Iptables::variant);
        let ours = match variant {
            Some(variant) => Some(variant.actual().await.unwrap_or(variant)),
            None => None,
        };
        let usual = Variant::Auto.actual().await.ok();
        let mut unread = |what: &str, error: FirewallError| {
            remarks.push(Remark::Warning(format!("cannot look at the rules of {what}: {error}")));
        };
        let mut tables = Vec::new();
        for kind in [Variant::Nft, Variant::Legacy] {
            for family in firewall.families() {
                let called = variant.filter(|_| Some(kind) == ours).unwrap_or(kind);
                let (program, _) = called.programs(family);
                match iptables::saved(program).await {
                    Ok(saved) => tables.extend(saved::read(&saved).into_iter().map(|(name, chains)| Table {
                        owner: Owner::Iptables { kind, family, program },
                        name,
                        chains,
                    })),
                    Err(FirewallError::Missing { .. }) if Some(kind) != ours => {}
                    Err(error) => unread(program, error),
                }
            }
        }
        match nft::tables().await {
            Ok(natives) => tables = with_natives(tables, natives),
            Err(FirewallError::Missing { .. }) => remarks.push(Remark::Note(
                "there is no nft here: tables of nftables that are not iptables' were not looked at"
                    .to_owned(),
            )),
            Err(error) => unread("nftables", error),
        }
        let firewalld_flushes = tables.iter().any(remarks::is_firewalld) && firewalld_flushes().await;
        Self { tables, ours, usual, firewalld_flushes }
    }

    /// The filter table of iptables that holds, or is to hold, the guard of a family.
    fn filter(&self, family: Family) -> Option<&Table> {
        self.tables.iter().find(|table| self.is_guarded(table) && table.serves(family))
    }

    fn is_guarded(&self, table: &Table) -> bool {
        matches!(table.owner, Owner::Iptables { kind, .. } if Some(kind) == self.ours)
            && table.name == "filter"
    }

    /// What the chains do with a packet that the kernel calls for it, but for the one that holds the guard.
    fn findings(&self, packet: Packet) -> impl Iterator<Item = Finding<'_>> {
        let tables = self.tables.iter().filter(move |table| table.serves(packet.family));
        tables.flat_map(move |table| {
            let hook = if packet.way == Way::In { Hook::In } else { Hook::Out };
            let bases = table.chains.iter().filter_map(|(name, chain)| Some((name, chain.base.as_ref()?)));
            let called = bases.filter(move |(name, base)| {
                base.hook == hook && !(self.is_guarded(table) && *name == "INPUT")
            });
            called.map(move |(chain, base)| {
                // A guard that is left over where none is configured goes when the gate starts.
                let decision = decide(&table.chains, chain, packet, remarks::is_jump);
                Finding { table, chain, base, decision }
            })
        })
    }
}

/// Adds the tables of nftables; those of iptables-nft are there already, and iptables knows better what is in them.
fn with_natives(mut tables: Vec<Table>, natives: Vec<nft::NftTable>) -> Vec<Table> {
    let of_iptables = |native: &nft::NftTable| {
        let same = |table: &Table| match table.owner {
            Owner::Iptables { kind: Variant::Nft, family, .. } => {
                table.name == native.name && native.family == if family == Family::V4 { "ip" } else { "ip6" }
            }
            _ => false,
        };
        tables.iter().any(same)
    };
    let natives: Vec<_> =
        natives.into_iter().filter(|native| !of_iptables(native) && !is_ours(native)).collect();
    tables.extend(natives.into_iter().map(|nft::NftTable { family, name, chains }| Table {
        owner: Owner::Nft { family },
        name,
        chains,
    }));
    tables
}

fn is_ours(native: &nft::NftTable) -> bool {
    (native.family.as_str(), native.name.as_str()) == ("inet", nftables::TABLE)
}

/// From version 2 on, only where rules were added past its zones.
async fn firewalld_flushes() -> bool {
    let mut command = Command::new("firewall-cmd");
    command.arg("--version");
    let version = iptables::ask("firewall-cmd", command).await.unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_none_or(|major| major < 2) || Path::new("/etc/firewalld/direct.xml").exists()
}
