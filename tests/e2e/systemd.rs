//! The units, under a real systemd: the guard before the network, ready when it is ready, reloads that fail when they
//! fail, restarts when it hangs or dies, and a stop that leaves the guard up.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use postern_tests::process::run;
use postern_tests::programs;
use postern_tests::wait::LONG;
use rustix::process::{Pid, Signal, kill_process};

/// What happens on the booted host. Each line that it prints is a name, a tab, and what was seen.
const SCRIPT: &str = r#"
say() { printf '%s\t%s\n' "$1" "$2"; }
state() { systemctl show posternd -P ActiveState -P SubState -P NRestarts | tr '\n' ' '; }
entered() { systemctl show "$1" -P ActiveEnterTimestampMonotonic; }
until_restarted() {
    for _ in $(seq 200); do
        [[ $(state) == "$1 active running " ]] && return
        sleep 0.1
    done
}
pid() { systemctl show posternd -P MainPID; }

say booted "$(state)"
guard=$(entered posternd-guard) network=$(entered network-pre.target) gate=$(entered posternd)
say order "$(( guard > 0 && guard <= network && network <= gate ))"
say guarded "$(iptables -S INPUT)"
say holds "$(posternd check --privileges | awk '/postern-/ { print $2, $4, $5, $6, $7, $8 }' | sort -u | tr '\n' ';')"
say added "$(posternd client add alice --service ssh 2>&1 >/dev/null)"
say reload "$(systemctl reload posternd && echo done)"
sed -i 's/22\/tcp/22\/tcpp/' /etc/postern/posternd.toml
say bad_reload "$(systemctl reload posternd 2>/dev/null || echo refused)"
say still "$(state)"
journalctl --sync
say said "$(journalctl --unit posternd --priority err --output cat --no-pager)"
sed -i 's/22\/tcpp/22\/tcp/' /etc/postern/posternd.toml
kill -STOP "$(pid)"
until_restarted 1
say hung "$(state)"
kill -KILL "$(pid)"
until_restarted 2
say killed "$(state)"
say asked "$(posternd status --json)"
systemctl stop posternd
say stopped "$(state)"
say left "$(iptables -S INPUT)"
say socket "$(ls /run/postern 2>&1)"
"#;

#[test]
fn the_units_do_what_they_promise() -> Result<()> {
    let report = boot(SCRIPT)?;
    let seen =
        |name: &str| report.get(name).map(String::as_str).with_context(|| format!("{name} in {report:#?}"));
    assert_eq!(seen("booted")?, "0 active running ");
    assert_eq!(seen("order")?, "1", "the guard, then the network, then the gate");
    for when in ["guarded", "left"] {
        ensure!(seen(when)?.contains("-A INPUT -j POSTERN"), "{when}: {}", seen(when)?);
    }
    let holds = seen("holds")?;
    ensure!(holds.contains("postern-front") && holds.contains("yes yes none"), "{holds}");
    ensure!(holds.contains("yes yes CAP_NET_ADMIN CAP_NET_RAW"), "{holds}");
    ensure!(seen("added")?.ends_with("the gate knows"), "{}", seen("added")?);
    assert_eq!((seen("reload")?, seen("bad_reload")?), ("done", "refused"));
    assert_eq!(seen("still")?, "0 active running ");
    ensure!(seen("said")?.contains("not reloaded; everything stays as it was"), "{}", seen("said")?);
    assert_eq!(seen("hung")?, "1 active running ");
    assert_eq!(seen("killed")?, "2 active running ");
    ensure!(seen("asked")?.contains("\"leases\":0"), "{}", seen("asked")?);
    ensure!(seen("stopped")?.contains("inactive dead"), "{}", seen("stopped")?);
    ensure!(!seen("socket")?.contains("admin.sock"), "{}", seen("socket")?);
    Ok(())
}

/// Boots, runs the script there, and gives what it printed by name; a value may have several lines.
fn boot(script: &str) -> Result<BTreeMap<String, String>> {
    let programs = programs::directory()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let report = tempfile::NamedTempFile::new()?;
    let cgroup = ControlGroup::new()?;
    let mut command = Command::new("sh");
    // Whatever systemd makes there goes with the group.
    command.args(["-c", "for group; do [ \"$group\" = -- ] && break; echo $$ >$group/cgroup.procs; shift; done; shift; exec \"$@\"", "sh"]);
    command.args(&cgroup.0).arg("--");
    command.args(["unshare", "--kill-child", "--mount", "--propagation", "private"]);
    command.args(["--net", "--pid", "--uts", "--ipc", "--fork", "bash"]);
    command.arg(here.join("e2e/systemd.sh")).arg(programs);
    command.arg(here.join("../server/systemd")).arg(report.path());
    let finished = run(command, script.as_bytes(), 3 * LONG)?;
    let text = fs::read_to_string(report.path())?;
    ensure!(!text.is_empty(), "nothing was reported: {}{}", finished.text(), finished.stderr);
    let mut seen = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some((name, value)) = line.split_once('\t') {
            name.clone_into(&mut last);
            seen.insert(last.clone(), value.to_owned());
        } else {
            let value: &mut String = seen.entry(last.clone()).or_default();
            value.push('\n');
            value.push_str(line);
        }
    }
    Ok(seen)
}

/// A control group in each hierarchy in which systemd keeps its units. Dropping it ends what is in it.
struct ControlGroup(Vec<String>);

impl ControlGroup {
    fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("postern-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let roots = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let roots = roots.into_iter().filter(|root| Path::new(root).join("cgroup.procs").exists());
        let group = Self(roots.map(|root| format!("{root}/{name}")).collect());
        for path in &group.0 {
            fs::create_dir(path).with_context(|| path.clone())?;
        }
        Ok(group)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // What cannot be taken away here is empty, and nobody is left to tell.
        self.0.iter().for_each(|path| take_away(Path::new(path)));
    }
}

fn take_away(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            take_away(&entry.path());
        }
    }
    for line in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = line.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = fs::remove_dir(group);
}
