//! `postern ssh-config`: what ssh needs to know to go through a gate, printed or put into its configuration.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::num::NonZeroU16;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf, absolute};

use postern_proto::{GateName, Protocol};

use super::proxy::find::unknown_port;
use crate::cli::{Cli, SshConfigArgs};
use crate::config::{Config, Entry, locate};
use crate::error::Error;
use crate::file::{Access, folder_of, replace};
use crate::report::{Report, SshConfigReport};
use crate::ssh_config::{Block, word};

/// What the program is called where it is installed.
const PROGRAM: &str = "postern";
/// Where everybody looks for programs, in the usual order.
const EVERYBODYS: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];
/// What a service, or a sequence, for ssh is called as a rule.
const SSH: &str = "ssh";
/// Where ssh connects to unless it is told otherwise.
const SSH_PORT: u16 = 22;

pub(super) fn run(cli: &Cli, args: &SshConfigArgs) -> Result<Report, Error> {
    let path = locate(cli.config.as_deref())?;
    let config = Config::load(&path)?;
    let gate = config.into_gate(&args.gate, &path)?;
    let block = Block {
        gate: args.gate.clone(),
        hosts: hosts(&args.gate, &gate),
        port: Some(ssh_port(&args.gate, &gate, args.port)?).filter(|port| port.get() != SSH_PORT),
        proxy: proxy(cli.config.as_deref(), &args.gate)?,
    };
    let mut report = SshConfigReport {
        gate: args.gate.clone(),
        block: block.to_string(),
        file: None,
        backup: None,
        changed: false,
    };
    if args.install {
        install(&block, &file(args)?, &mut report)?;
    }
    Ok(Report::SshConfig(report))
}

/// What people call it: each pattern once.
fn hosts(name: &GateName, gate: &Entry) -> Vec<String> {
    let mut hosts = vec![name.to_string()];
    for address in gate.addresses.iter().map(ToString::to_string) {
        if !hosts.contains(&address) {
            hosts.push(address);
        }
    }
    hosts
}

/// Where the gate has ssh.
fn ssh_port(name: &GateName, gate: &Entry, asked: Option<NonZeroU16>) -> Result<NonZeroU16, Error> {
    let services = gate.profile.iter().flat_map(|profile| &profile.services);
    let services = services.map(|(name, ports)| (name.as_str(), ports));
    let sequences = gate.sequences.iter().map(|(name, one)| (name.as_str(), &one.opens));
    let mut all = BTreeSet::new();
    let mut called_ssh = Vec::new();
    for (name, ports) in services.chain(sequences) {
        let tcp = ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.number);
        let tcp: Vec<_> = tcp.collect();
        all.extend(&tcp);
        if name == SSH {
            called_ssh.extend(tcp);
        }
    }
    if let Some(port) = asked {
        return if all.contains(&port) { Ok(port) } else { Err(unknown_port(name.as_str(), gate, port)) };
    }
    let usual = NonZeroU16::new(SSH_PORT).expect("22 is not 0");
    let named = if called_ssh.contains(&usual) { Some(usual) } else { called_ssh.first().copied() };
    let usual = all.get(&usual).copied();
    let only = all.first().copied().filter(|_| all.len() == 1);
    named.or(usual).or(only).ok_or_else(|| Error::NoSshPort {
        gate: name.clone(),
        known: all.iter().map(ToString::to_string).collect(),
    })
}

/// What ssh is to run; `%h` and `%p` it fills in itself. The gate is always named: an older `HostName` makes `%h` an address
/// that no gate lists, and another gate may come to list the same.
fn proxy(config: Option<&Path>, gate: &GateName) -> Result<String, Error> {
    let mut words = vec![program()?];
    if let Some(config) = config {
        let config = absolute(config).map_err(Error::unreadable(config))?;
        words.extend(["--config".to_owned(), word_of(&config)?]);
    }
    words.push(format!("proxy --gate {gate} %h %p"));
    Ok(words.join(" "))
}

/// This program: by its name where everybody finds it by that, else by its whole path.
fn program() -> Result<String, Error> {
    let own = env::current_exe()
        .map_err(|source| Error::System { what: "cannot tell where this program is", source })?;
    let folders = |path: OsString| env::split_paths(&path).collect::<Vec<_>>();
    let here = env::var_os("PATH").map(folders).unwrap_or_default();
    let is_found = |folders: &[PathBuf]| first_of(folders).is_some_and(|found| is_same(&found, &own));
    // Timers, editors and desktops have another PATH than the shell of whoever calls this.
    if is_found(&here) && is_found(&EVERYBODYS.map(PathBuf::from)) {
        return Ok(PROGRAM.to_owned());
    }
    word_of(&own)
}

/// The program that a shell with this path would run.
fn first_of(path: &[PathBuf]) -> Option<PathBuf> {
    let is_executable = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    path.iter().map(|folder| folder.join(PROGRAM)).find(is_executable)
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn word_of(path: &Path) -> Result<String, Error> {
    let word = path.to_str().and_then(word);
    word.ok_or_else(|| {
        Error::Usage(format!(
            "ssh's configuration cannot hold the path {}: move it to one without control characters and backslashes",
            path.display()
        ))
    })
}

fn file(args: &SshConfigArgs) -> Result<PathBuf, Error> {
    if let Some(file) = &args.file {
        return Ok(file.clone());
    }
    let home = env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let no_home = || Error::Usage("HOME is not set: name ssh's configuration with --file FILE".into());
    home.map(|home| home.join(".ssh/config")).ok_or_else(no_home)
}

/// Puts the block into the file, and says so in the report.
fn install(block: &Block, path: &Path, report: &mut SshConfigReport) -> Result<(), Error> {
    let path = &real(path)?;
    let folder = folder_of(path);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::unwritable(folder))?;
    // Two at a time would lose one's block. The folder is what both can hold without leaving a file behind.
    let _lock = File::open(folder)
        .and_then(|folder| folder.lock().map(|()| folder))
        .map_err(Error::unwritable(folder))?;

    let old = read(path)?;
    let text = old.as_ref().map_or(&[][..], |(text, _)| text);
    let new = block.put_into(text).map_err(|bad| Error::Marks {
        path: path.clone(),
        line: bad.line,
        message: bad.message,
    })?;
    report.file = Some(path.clone());
    if new == text {
        return Ok(());
    }
    let access = match &old {
        Some((text, access)) => {
            let backup = backup(path);
            replace(&backup, text, *access).map_err(Error::unwritable(&backup))?;
            report.backup = Some(backup);
            *access
        }
        None => Access::PRIVATE,
    };
    replace(path, &new, access).map_err(Error::unwritable(path))?;
    report.changed = true;
    Ok(())
}

/// The file itself, where its name is a link: the link stays.
fn real(path: &Path) -> Result<PathBuf, Error> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
            absolute(path).map_err(Error::unwritable(path))
        }
        found => found.map_err(Error::unwritable(path)),
    }
}

fn read(path: &Path) -> Result<Option<(Vec<u8>, Access)>, Error> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::unreadable(path)(error)),
        Ok(file) if !file.is_file() => {
            Err(Error::unreadable(path)(io::Error::other("it is no regular file")))
        }
        Ok(file) => {
            let text = fs::read(path).map_err(Error::unreadable(path))?;
            Ok(Some((text, Access::of(&file))))
        }
    }
}

/// A name that no file has yet: an earlier one may hold what was lost since. The folder is locked meanwhile.
fn backup(path: &Path) -> PathBuf {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(".postern-backup");
        if number > 1 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    let is_free = |name: &PathBuf| fs::symlink_metadata(name).is_err();
    (1..=u32::MAX).map(numbered).find(is_free).expect("no folder has that many files")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "gate-id = \"AAAAAAAAAAAAAAAAAAAAAA\"\nclient-id = \"AAAAAAAAAAA\"\nports = [1]\n\
        secret = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"\naddresses = [\"h\"]\n";

    #[test]
    fn the_first_that_can_be_run_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = ["none", "text", "one", "two"].map(|name| folder.path().join(name));
        let program = |at: &Path, mode| {
            fs::create_dir(at).unwrap();
            fs::write(at.join(PROGRAM), "").unwrap();
            fs::set_permissions(at.join(PROGRAM), fs::Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!(first_of(&path), None);
        program(&path[1], 0o644);
        program(&path[2], 0o755);
        program(&path[3], 0o755);
        assert_eq!(first_of(&path), Some(path[2].join(PROGRAM)));
        assert!(is_same(&path[2].join(PROGRAM), &folder.path().join("one/../one").join(PROGRAM)));
        assert!(!is_same(&path[2].join(PROGRAM), &path[3].join(PROGRAM)));
    }

    #[test]
    fn ssh_is_where_the_gate_says() {
        let of = |services: &str, asked: u16| {
            let text = format!("[gates.g]\n{KEYS}services = {{ {services} }}\n");
            let gate =
                Config::parse(&text).unwrap().into_gate(&"g".parse().unwrap(), Path::new("c")).unwrap();
            let port = ssh_port(&"g".parse().unwrap(), &gate, NonZeroU16::new(asked));
            port.map(NonZeroU16::get).map_err(|error| error.to_string())
        };
        for (services, port) in [
            ("ssh = [\"22/tcp\"]", 22),
            ("ssh = [\"2222/tcp\"], other = [\"22/tcp\"]", 2222),
            ("ssh = [\"2222/tcp\", \"22/tcp\"]", 22),
            ("ssh = [\"60001/udp\", \"2222/tcp\"]", 2222),
            ("all = [\"80/tcp\", \"22/tcp\"]", 22),
            ("login = [\"2200/tcp\", \"60001/udp\"]", 2200),
        ] {
            assert_eq!(of(services, 0), Ok(port), "{services}");
        }
        assert_eq!(of("all = [\"80/tcp\", \"2222/tcp\"]", 2222), Ok(2222));
        let unsure = of("all = [\"80/tcp\", \"2222/tcp\"]", 0).unwrap_err();
        assert!(unsure.ends_with("it has the TCP ports 80, 2222: say which with --port"), "{unsure}");
        let none = of("vpn = [\"22/udp\"]", 0).unwrap_err();
        assert!(none.contains("no TCP port"), "{none}");
        assert!(of("ssh = [\"22/tcp\"]", 23).unwrap_err().contains("no service at port 23/tcp"));
    }
}
