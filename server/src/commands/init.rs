//! `posternd init`: a configuration to begin with. It never overwrites anything.

use std::fs::{self, DirBuilder};
use std::num::NonZeroU16;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, bail};
use postern_proto::GateId;
use postern_proto::profile::Host;

use super::print::say;
use super::{ports, random};
use crate::files::FolderLock;

const TEMPLATE: &str = include_str!("../../posternd.example.toml");
const KEYS: &str = "# The clients of this gate. `posternd client add NAME --service ssh` writes an entry.\n";

pub(crate) fn run(path: &Path, addresses: &[Host]) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let keys = folder.join("keys");
    for file in [path, &keys] {
        if file.exists() {
            bail!("{} exists already: it is left as it is, and nothing was written", file.display());
        }
    }
    let port = ports::draw(&mut ports::free(&ports::known()?))?;
    let config = configuration(&GateId::from_bytes(random()?), port, addresses);
    let lock = FolderLock::around(path).with_context(|| format!("cannot write {}", path.display()))?;
    lock.create(&keys, KEYS).with_context(|| format!("cannot write {}", keys.display()))?;
    if let Err(error) = lock.create(path, &config) {
        fs::remove_file(&keys).with_context(|| format!("cannot take back {}", keys.display()))?;
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }

    say!("wrote {} (knock port {port}/udp) and {}", path.display(), keys.display())?;
    say!("next:")?;
    say!("  1. look through {}: the services, and always-allow", path.display())?;
    say!(
        "  2. posternd client add NAME --service ssh{}",
        if addresses.is_empty() { " --address HOST" } else { "" }
    )?;
    say!("  3. posternd check")?;
    say!("  4. posternd run --trial 5m   (the guard falls by itself unless you confirm it)")
}

/// The template, with this gate's own values in it.
fn configuration(id: &GateId, port: NonZeroU16, addresses: &[Host]) -> String {
    let line = |line: &str| match line.split_once(" = ").map(|(key, _)| key) {
        Some("id") => format!("id = \"{}\"\n", *id.to_text()),
        Some("ports") if line.contains("62201") => format!("ports = [{port}]\n"),
        Some("addresses") => {
            let quoted: Vec<_> = addresses.iter().map(|host| format!("\"{host}\"")).collect();
            format!("addresses = [{}]\n", quoted.join(", "))
        }
        _ => format!("{line}\n"),
    };
    TEMPLATE.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Config;

    #[test]
    fn what_it_writes_reads_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("posternd.toml");
        run(&path, &["gate.example.net".parse().unwrap()]).unwrap();
        let config = Config::read(&path).unwrap();
        assert!(ports::DRAWN.contains(&config.gate.ports[0].get()));
        assert_eq!(config.gate.addresses[0].as_str(), "gate.example.net");
        assert!(config.clients.is_empty());
        assert_ne!(*config.gate.id.to_text(), "cG9zdGVybi1leGFtcGxlIQ");
        for file in [&path, &config.keys] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let before = fs::read_to_string(&path).unwrap();
        assert!(run(&path, &[]).unwrap_err().to_string().contains("exists already"));
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
