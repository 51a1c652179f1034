//! Carries rules into the kernel through iptables, for one address family. Every call has a deadline, and every exit
//! code counts. Single rules go through the iptables crate; what must change together goes as one transaction through
//! `iptables-restore`, which the crate does not have.

use std::env;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use iptables::IPTables;
use tokio::time::timeout;

use super::Chains;
use super::damage::{Part, Printed, damage};
use super::rules::{GRANTS_CHAIN, GUARD_CHAIN};
use crate::warden::firewall::nftables::has_chain;
use crate::warden::firewall::{Family, FirewallError};

const TABLE: &str = "filter";
/// Seconds that iptables waits for its lock; the crate by itself would wait for ever.
const LOCK_SECONDS: &str = "5";
/// How long one call may take, lock included. What comes back later than this is not heard any more.
pub(in crate::warden::firewall) const DEADLINE: Duration = Duration::from_secs(10);
/// The jump that must stay INPUT's first rule.
const JUMP: &str = "-j POSTERN";

/// Which of the two implementations of iptables is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Variant {
    /// Whatever `iptables` is on this host.
    Auto,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Variant {
    /// Which of the two it is on this host.
    pub(crate) async fn actual(self) -> Result<Self, FirewallError> {
        if self != Self::Auto {
            return Ok(self);
        }
        let (program, _) = self.programs(Family::V4);
        let mut command = Command::new(program);
        command.arg("--version");
        let version = ask(program, command).await?;
        Ok(if version.contains("nf_tables") { Self::Nft } else { Self::Legacy })
    }

    /// The programs of a family: for single rules, and for transactions.
    pub(crate) const fn programs(self, family: Family) -> (&'static str, &'static str) {
        match (self, family) {
            (Self::Auto, Family::V4) => ("iptables", "iptables-restore"),
            (Self::Auto, Family::V6) => ("ip6tables", "ip6tables-restore"),
            (Self::Nft, Family::V4) => ("iptables-nft", "iptables-nft-restore"),
            (Self::Nft, Family::V6) => ("ip6tables-nft", "ip6tables-nft-restore"),
            (Self::Legacy, Family::V4) => ("iptables-legacy", "iptables-legacy-restore"),
            (Self::Legacy, Family::V6) => ("ip6tables-legacy", "ip6tables-legacy-restore"),
        }
    }
}

/// Whether rules of ours can be there at all: asking a legacy table for its rules would make it.
pub(super) fn may_hold_rules(variant: Variant, family: Family) -> bool {
    let tables = match (variant, family) {
        (Variant::Legacy, Family::V4) => "/proc/net/ip_tables_names",
        (Variant::Legacy, Family::V6) => "/proc/net/ip6_tables_names",
        // Asked of the kernel, so that no program is run where nothing is; where it does not tell, it may.
        _ => {
            return [GUARD_CHAIN, GRANTS_CHAIN]
                .iter()
                .any(|chain| has_chain(family, TABLE, chain).unwrap_or(true));
        }
    };
    fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name == TABLE))
}

/// The filter table of one family, as `iptables -S` prints it.
pub(crate) struct Listing(pub(super) String);

impl Listing {
    /// The rules of a chain, as they are printed.
    pub(crate) fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines("-A", chain)
    }

    /// Whether INPUT jumps to the guard first, and only once.
    pub(super) fn jumps_first(&self) -> bool {
        let mut input = self.rules("INPUT");
        input.next().is_some_and(is_jump) && !input.any(is_jump)
    }

    /// Whether there is a chain of ours of this name.
    fn has(&self, chain: &str) -> bool {
        self.lines("-N", chain).next().is_some()
    }

    fn lines<'a>(&'a self, flag: &'a str, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter(move |line| {
            let mut words = line.split(' ');
            words.next() == Some(flag) && words.next() == Some(chain)
        })
    }
}

/// iptables of one family.
#[derive(Clone)]
pub(crate) struct Tables {
    single: Arc<IPTables>,
    restore: &'static str,
    pub(crate) variant: Variant,
    pub(crate) family: Family,
    /// What went in last; `None` until then.
    printed: Option<Printed>,
}

impl Tables {
    pub(crate) fn new(variant: Variant, family: Family) -> Self {
        let (cmd, restore) = variant.programs(family);
        // Every iptables that still runs on a supported system has --check; --wait is given with a limit instead.
        let single = IPTables { cmd, has_check: true, has_wait: false, is_numeric: true };
        Self { single: Arc::new(single), restore, variant, family, printed: None }
    }

    /// The program for single rules.
    pub(crate) fn program(&self) -> &'static str {
        self.single.cmd
    }

    /// Puts rules at the head of the grants chain: one by itself, several in one transaction.
    pub(super) async fn insert_grants(&self, rules: &[String]) -> Result<(), FirewallError> {
        match rules {
            [] => Ok(()),
            [rule] => self.execute(TABLE, format!("-I {GRANTS_CHAIN} 1 {rule}")).await.map(drop),
            _ => {
                let lines: Vec<_> = rules.iter().map(|rule| format!("-I {GRANTS_CHAIN} 1 {rule}")).collect();
                self.transact(&lines).await
            }
        }
    }

    /// Takes rules out of the grants chain, in one transaction; one by one where that fails, since one rule that is gone
    /// already makes it fail as a whole.
    pub(super) async fn delete_grants(&self, rules: &[String]) -> Result<(), FirewallError> {
        let lines: Vec<String> = rules.iter().map(|rule| format!("-D {GRANTS_CHAIN} {rule}")).collect();
        if lines.is_empty() || (lines.len() > 1 && self.transact(&lines).await.is_ok()) {
            return Ok(());
        }
        let mut result = Ok(());
        for line in lines {
            result = result.and(self.execute(TABLE, line).await.map(drop));
        }
        result
    }

    /// All chains with their rules. Asking for one that may be missing fails like anything else that can fail.
    pub(crate) async fn list(&self) -> Result<Listing, FirewallError> {
        self.execute(TABLE, "-S".to_owned()).await.map(Listing)
    }

    /// Whether the program for single rules is on this host.
    pub(crate) fn is_installed(&self) -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|folder| folder.join(self.single.cmd).exists())
    }

    /// Fills both chains and makes the jump INPUT's first rule, in one transaction: at no moment is a part of it there.
    pub(super) async fn install(&mut self, chains: &Chains) -> Result<(), FirewallError> {
        let listing = self.list().await?;
        self.install_over(&listing, chains).await
    }

    /// Does the same where what is there is not what went in last; gives what was wrong.
    pub(super) async fn heal(
        &mut self,
        chains: &Chains,
        taking_out: bool,
    ) -> Result<Vec<Part>, FirewallError> {
        let listing = self.list().await?;
        let damage = damage(&listing, chains, self.printed.as_ref(), taking_out);
        if !damage.is_empty() {
            self.install_over(&listing, chains).await?;
        }
        Ok(damage)
    }

    async fn install_over(&mut self, listing: &Listing, chains: &Chains) -> Result<(), FirewallError> {
        let mut lines = vec![format!(":{GUARD_CHAIN} - [0:0]"), format!(":{GRANTS_CHAIN} - [0:0]")];
        if !listing.jumps_first() {
            let jumps = listing.rules("INPUT").filter(|rule| is_jump(rule));
            lines.extend(jumps.map(|_| format!("-D INPUT {JUMP}")));
            lines.push(format!("-I INPUT 1 {JUMP}"));
        }
        lines.extend(chains.guard.iter().map(|rule| format!("-A {GUARD_CHAIN} {rule}")));
        lines.extend(chains.grants.iter().map(|rule| format!("-A {GRANTS_CHAIN} {rule}")));
        lines.extend(chains.refusals.iter().map(|rule| format!("-A {GRANTS_CHAIN} {rule}")));
        self.transact(&lines).await?;
        self.printed = Printed::read(&self.list().await?, chains);
        Ok(())
    }

    /// Takes away everything of ours in one transaction; `false` when there was nothing.
    pub(super) async fn uninstall(&self) -> Result<bool, FirewallError> {
        let listing = self.list().await?;
        let jumps = listing.rules("INPUT").filter(|rule| rule.ends_with(JUMP));
        let mut lines: Vec<_> = jumps.map(|rule| rule.replacen("-A", "-D", 1)).collect();
        let chains: Vec<_> =
            [GUARD_CHAIN, GRANTS_CHAIN].into_iter().filter(|chain| listing.has(chain)).collect();
        lines.extend(chains.iter().map(|chain| format!("-F {chain}")));
        lines.extend(chains.iter().map(|chain| format!("-X {chain}")));
        if lines.is_empty() {
            return Ok(false);
        }
        self.transact(&lines).await.map(|()| true)
    }

    async fn execute(&self, table: &'static str, command: String) -> Result<String, FirewallError> {
        let (tables, program) = (Arc::clone(&self.single), self.single.cmd);
        let call = move || {
            let command = format!("-w {LOCK_SECONDS} {command}");
            tables.execute(table, &command).map_err(|error| error.to_string())
        };
        run(program, call).await
    }

    async fn transact(&self, lines: &[String]) -> Result<(), FirewallError> {
        let (program, input) = (self.restore, format!("*{TABLE}\n{}\nCOMMIT\n", lines.join("\n")));
        let call = move || -> std::io::Result<Output> {
            let mut child = Command::new(program)
                .args(["--noflush", "-w", LOCK_SECONDS])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // A program that gave up early says why itself: its exit code tells.
            let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
            let output = child.wait_with_output()?;
            if output.status.success() { written.map(|()| output) } else { Ok(output) }
        };
        run(program, move || call().map_err(|error| error.to_string())).await.map(drop)
    }
}

/// All tables of a family, as the `-save` of one of its programs prints them; none is made by asking.
pub(in crate::warden::firewall) async fn saved(program: &'static str) -> Result<String, FirewallError> {
    ask(program, Command::new(format!("{program}-save"))).await
}

/// Runs a program that only tells something; gives its standard output.
pub(in crate::warden::firewall) async fn ask(
    program: &'static str,
    mut command: Command,
) -> Result<String, FirewallError> {
    run(program, move || command.output().map_err(|error| error.to_string())).await
}

/// Runs a blocking call with the deadline; gives its standard output.
async fn run(
    program: &'static str,
    call: impl FnOnce() -> Result<Output, String> + Send + 'static,
) -> Result<String, FirewallError> {
    let missing = |reason| FirewallError::Missing { program, reason };
    let output = timeout(DEADLINE, tokio::task::spawn_blocking(call))
        .await
        .map_err(|_| FirewallError::Late { program })?
        .map_err(|error| missing(error.to_string()))?
        .map_err(missing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(FirewallError::Failed {
        program,
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn is_jump(rule: &str) -> bool {
    rule == format!("-A INPUT {JUMP}")
}
