//! Doors of knockd as services and sequences, with remarks on what is not the same.

use std::fmt::Write as _;

use super::{DoorPorts, ForFamilies, KnockdConf, KnockdDoor};

/// Longest name of a service.
const NAME: usize = postern_proto::ServiceName::MAX_LEN;
/// How long a command may take; knockd does not end any.
const COMMAND_TIMEOUT: &str = "1m";
/// Leases of one door at a time; knockd counts none.
const MAX_LEASES: u32 = 1024;

impl KnockdConf {
    /// The doors, in posternd.toml's own terms.
    pub(crate) fn to_toml(&self) -> String {
        let mut taken = Vec::new();
        let mut text = String::new();
        for door in &self.doors {
            let name = name(&door.name, &taken);
            // Writing to a string cannot fail.
            let _ = door.write(&mut text, &name);
            taken.push(name);
        }
        text
    }

    /// What the doors mean here and did not mean in knockd, a line each.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = vec![
            "A start command runs once until its stop command has: going through the sequence again meanwhile puts the \
             stop command off. Without a stop command it runs each time."
                .to_owned(),
            "A stop command runs also when the gate stops, and after a crash."
                .to_owned(),
            format!("A command that takes longer than {COMMAND_TIMEOUT} is ended (command-timeout)."),
            "Doors do not disturb one another, and nobody's packets disturb another address.".to_owned(),
            "strays = \"unlimited\" is knockd's way: whoever scans all ports goes through ascending ones. Without that line \
             more than 5 other ports end an attempt."
                .to_owned(),
        ];
        for what in &self.without_meaning {
            remarks.push(format!("{what}: the log goes to standard error, or to the journal under systemd."));
        }
        for door in &self.doors {
            let name = &door.name;
            match door.flags.map(|flags| flags.to_string()) {
                None => remarks.push(format!(
                    "[{name}] has no tcpflags: every TCP packet to its ports is a step, or a wrong one. flags = \"syn\" is better."
                )),
                Some(flags) if flags.contains("syn") && flags.split(',').any(|flag| flag == "ack") => {
                    remarks.push(format!("[{name}]: no ordinary client sends packets with {flags}; flags = \"syn\" is meant."));
                }
                Some(_) => {}
            }
        }
        remarks
    }
}

impl KnockdDoor {
    fn write(&self, text: &mut String, name: &str) -> std::fmt::Result {
        let Self { ports, seq_timeout, cmd_timeout, start, stop, target, .. } = self;
        writeln!(text, "[services.{name}]")?;
        writeln!(text, "window = \"{cmd_timeout}s\"")?;
        if *cmd_timeout > postern_proto::Window::DEFAULT_MAX.as_secs() {
            writeln!(text, "max-window = \"{cmd_timeout}s\"")?;
        }
        write_commands(text, "on-open", start)?;
        write_commands(text, "on-close", stop)?;
        writeln!(text, "command-timeout = \"{COMMAND_TIMEOUT}\"")?;
        writeln!(text, "\n[sequences.{name}]")?;
        match ports {
            DoorPorts::Steps(steps) => {
                let steps: Vec<_> = steps.as_slice().iter().map(ToString::to_string).collect();
                writeln!(text, "steps = {steps:?}")?;
            }
            DoorPorts::OneTime(file) => {
                writeln!(text, "one-time = {}", toml::Value::from(file.to_string_lossy().as_ref()))?;
            }
        }
        writeln!(text, "services = [\"{name}\"]")?;
        writeln!(text, "timeout = \"{seq_timeout}s\"")?;
        writeln!(text, "flags = \"{}\"", self.flags.unwrap_or(postern_proto::sequence::TcpFlags::ANY))?;
        if let Some(target) = target {
            writeln!(text, "target = \"{target}\"")?;
        }
        writeln!(text, "strays = \"unlimited\"")?;
        writeln!(text, "max-leases = {MAX_LEASES}\n")
    }
}

/// By the shell, as knockd runs them.
fn write_commands(text: &mut String, key: &str, commands: &ForFamilies) -> std::fmt::Result {
    let ForFamilies { ipv4, ipv6 } = commands;
    let argv = |command: &str| {
        toml::Value::Array(["/bin/sh", "-c", command].map(toml::Value::from).to_vec()).to_string()
    };
    let does = |command: &&String| !command.is_empty();
    match (ipv4.as_ref().filter(does), ipv6) {
        (Some(both), None) => writeln!(text, "{key} = {}", argv(both)),
        (None, None) => Ok(()),
        (ipv4, Some(ipv6)) => {
            if let Some(ipv4) = ipv4 {
                writeln!(text, "{key}-ipv4 = {}", argv(ipv4))?;
            }
            if !ipv6.is_empty() {
                writeln!(text, "{key}-ipv6 = {}", argv(ipv6))?;
            }
            Ok(())
        }
    }
}

/// A name as services have them, and none that is taken: knockd's may hold anything.
fn name(of: &str, taken: &[String]) -> String {
    let fit =
        |letter: char| if letter.is_ascii_alphanumeric() || "-_".contains(letter) { letter } else { '-' };
    let fitted: String = of.chars().map(fit).collect();
    let fitted = fitted.trim_start_matches(['-', '_']);
    let fitted = if fitted.is_empty() { "door" } else { fitted };
    let cut = |len: usize| fitted[..fitted.len().min(len)].to_owned();
    let numbered = (2..).map(|number: u32| format!("{}-{number}", cut(NAME - 6)));
    std::iter::once(cut(NAME)).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_to_fit() {
        assert_eq!(name("openSSH", &[]), "openSSH");
        assert_eq!(name("open SSH!", &[]), "open-SSH-");
        assert_eq!(name("--", &[]), "door");
        assert_eq!(name("é", &[]), "door");
        // A dot would make a table within a table.
        assert_eq!(name("open.ssh", &[]), "open-ssh");
        assert_eq!(name("a", &["a".to_owned(), "a-2".to_owned()]), "a-3");
        let long = "x".repeat(100);
        assert_eq!(name(&long, &[]).len(), NAME);
        assert!(name(&long, &[name(&long, &[])]).parse::<postern_proto::ServiceName>().is_ok());
    }
}
