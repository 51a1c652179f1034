//! knockd.conf, as knockd 0.8 reads it (knockd(1)), and the same in our own terms.
//!
//! ```text
//! text ──parse──▶ KnockdConf ──toml──▶ [services.NAME] with the commands, [sequences.NAME] with the ports
//! ```
//! The way through TOML is the only one: what `posternd --knockd` runs is what `import-knockd` prints.

use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use postern_proto::sequence::{Steps, StepsError, TcpFlags};
use postern_proto::text::TextError;

mod toml;

/// knockd's own defaults, in seconds.
const SEQ_TIMEOUT: u32 = 25;
const CMD_TIMEOUT: u32 = 10;

/// A knockd.conf.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct KnockdConf {
    /// Where knockd listens.
    pub(crate) interface: Option<String>,
    /// Options that mean nothing here: where knockd logs, and its pid file.
    pub(crate) without_meaning: Vec<&'static str>,
    pub(crate) doors: Vec<KnockdDoor>,
}

/// One section of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KnockdDoor {
    pub(crate) name: String,
    pub(crate) ports: DoorPorts,
    /// Seconds from the first step.
    pub(crate) seq_timeout: u32,
    /// Any TCP packet, where there are none.
    pub(crate) flags: Option<TcpFlags>,
    pub(crate) target: Option<IpAddr>,
    /// Seconds from the start command to the stop command.
    pub(crate) cmd_timeout: u32,
    pub(crate) start: ForFamilies,
    pub(crate) stop: ForFamilies,
}

/// The ports of a door.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DoorPorts {
    /// `Sequence`.
    Steps(Steps),
    /// `One_Time_Sequences`: a file with one a line.
    OneTime(PathBuf),
}

/// A command line for the shell, and another one for IPv6.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ForFamilies {
    pub(crate) ipv4: Option<String>,
    /// As for IPv4 where it is missing; nothing where it is empty.
    pub(crate) ipv6: Option<String>,
}

/// What stands in one section so far.
#[derive(Default)]
struct Section {
    name: String,
    at: Range<usize>,
    ports: Option<DoorPorts>,
    seq_timeout: Option<u32>,
    flags: Option<TcpFlags>,
    target: Option<IpAddr>,
    cmd_timeout: Option<u32>,
    start: ForFamilies,
    stop: ForFamilies,
}

impl FromStr for KnockdConf {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let mut conf = Self::default();
        let mut section: Option<Section> = None;
        let mut begin = 0;
        for raw in text.split_inclusive('\n') {
            let at = begin..begin + raw.len();
            begin = at.end;
            let line = raw.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                conf.close(text, section.take())?;
                section = Some(Section { name: name.to_owned(), at, ..Section::default() });
                continue;
            }
            let Some(section) = &mut section else {
                let message = "a directive before any section: begin with [options], or the name of a door";
                return Err(TextError::at(text, &at, message));
            };
            let (key, value) = line.split_once('=').map_or((line, None), |(key, value)| (key, Some(value)));
            let (key, value) = (key.trim().to_ascii_lowercase(), value.map(str::trim));
            let taken = if section.name == "options" {
                conf.option(&key, value)
            } else {
                section.directive(&key, value)
            };
            taken.map_err(|problem| TextError::at(text, &at, problem))?;
        }
        conf.close(text, section)?;
        Ok(conf)
    }
}

impl KnockdConf {
    fn option(&mut self, key: &str, value: Option<&str>) -> Result<(), String> {
        match (key, value) {
            ("usesyslog", None) => self.without_meaning.push("UseSyslog"),
            ("logfile", Some(_)) => self.without_meaning.push("LogFile"),
            ("pidfile", Some(_)) => self.without_meaning.push("PidFile"),
            ("interface", Some(name)) => self.interface = Some(name.to_owned()),
            _ => {
                return Err(
                    "[options] has UseSyslog, LogFile = FILE, PidFile = FILE and Interface = NAME".to_owned()
                );
            }
        }
        Ok(())
    }

    /// Takes in a section that has come to its end.
    fn close(&mut self, text: &str, section: Option<Section>) -> Result<(), TextError> {
        let Some(section) = section.filter(|section| section.name != "options") else { return Ok(()) };
        let error =
            |problem: &str| Err(TextError::at(text, &section.at, format!("[{}]: {problem}", section.name)));
        if self.doors.iter().any(|door| door.name == section.name) {
            return error("there is another door of this name");
        }
        let Some(ports) = section.ports else {
            return error("it has no sequence");
        };
        if section.start == ForFamilies::default() {
            return error("it has no start_command");
        }
        self.doors.push(KnockdDoor {
            name: section.name,
            ports,
            seq_timeout: section.seq_timeout.unwrap_or(SEQ_TIMEOUT),
            flags: section.flags,
            target: section.target,
            cmd_timeout: section.cmd_timeout.unwrap_or(CMD_TIMEOUT),
            start: section.start,
            stop: section.stop,
        });
        Ok(())
    }
}

impl Section {
    /// The last of several counts, as in knockd.
    fn directive(&mut self, key: &str, value: Option<&str>) -> Result<(), String> {
        let value = value.ok_or_else(|| format!("{key} needs a value: {key} = ..."))?;
        let seconds = || match value.parse() {
            Ok(0) | Err(_) => Err(format!("{key} is a number of seconds, 1 at least")),
            Ok(seconds) => Ok(seconds),
        };
        match key {
            "sequence" => {
                let steps: Result<Steps, StepsError> = value.parse();
                let steps = steps.map_err(|error| format!("{key}: {}", error.without_text()))?;
                self.ports = Some(DoorPorts::Steps(steps));
            }
            "one_time_sequences" => self.ports = Some(DoorPorts::OneTime(value.into())),
            "seq_timeout" | "timeout" => self.seq_timeout = Some(seconds()?),
            "cmd_timeout" => self.cmd_timeout = Some(seconds()?),
            "tcpflags" => self.flags = Some(value.parse().map_err(|error| format!("{key}: {error}"))?),
            "target" => {
                self.target = Some(value.parse().map_err(|_| format!("{key} is an IPv4 or IPv6 address"))?);
            }
            "start_command" | "command" => self.start.ipv4 = Some(value.to_owned()),
            "start_command_6" | "command_6" => self.start.ipv6 = Some(value.to_owned()),
            "stop_command" => self.stop.ipv4 = Some(value.to_owned()),
            "stop_command_6" => self.stop.ipv6 = Some(value.to_owned()),
            _ => {
                return Err(format!(
                    "a door has no {key}: it has Sequence, Seq_Timeout, TCPFlags, Target, Start_Command, Cmd_Timeout, \
                     Stop_Command, and Start_Command_6 and Stop_Command_6 for IPv6"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the wiki page has it, with the flags that an ordinary client sends.
    const WIKI: &str = "\
[options]
        logfile = /var/log/knockd.log
[opencloseSSH]
        sequence      = 8881:tcp,7777:tcp,9991:tcp
        seq_timeout   = 15
        tcpflags      = syn
        start_command = /usr/sbin/iptables -A TCP -s %IP% -p tcp --dport 22 -j ACCEPT
        cmd_timeout   = 10
        stop_command  = /usr/sbin/iptables -D TCP -s %IP% -p tcp --dport 22 -j ACCEPT
";

    #[test]
    fn a_knockd_conf_reads() {
        let conf: KnockdConf = WIKI.parse().unwrap();
        assert_eq!((conf.interface, conf.without_meaning), (None, vec!["LogFile"]));
        let [door] = &conf.doors[..] else { panic!("{:?}", conf.doors) };
        assert_eq!(door.name, "opencloseSSH");
        assert_eq!(door.ports, DoorPorts::Steps("8881,7777,9991".parse().unwrap()));
        assert_eq!((door.seq_timeout, door.cmd_timeout), (15, 10));
        assert_eq!(door.flags.unwrap().to_string(), "syn");
        assert!(door.start.ipv4.as_ref().unwrap().starts_with("/usr/sbin/iptables -A TCP -s %IP% "));
        assert!(door.start.ipv6.is_none());
    }

    #[test]
    fn keys_have_any_case_and_the_last_of_two_counts() {
        let text = "\
# a comment
[options]
UseSyslog
Interface = eth1
PIDFILE=/run/x
[a door]
Sequence = 1,2:udp
sequence = 3 , 4:UDP
[other]
SEQUENCE=5
Timeout = 3
Command = a = b # no comment
Command_6 =
Target = 2001:db8::1
";
        let text_with = |from: &str, to: &str| text.replace(from, to).parse::<KnockdConf>();
        let error = text_with("x", "x").unwrap_err();
        assert_eq!((error.line, error.message.contains("a step is a port")), (8, true), "{error}");
        let error = text_with("sequence = 3 , 4:UDP\n", "").unwrap_err();
        assert_eq!((error.line, error.message.as_str()), (6, "[a door]: it has no start_command"));
        let conf = text_with("sequence = 3 , 4:UDP", "sequence = 3 , 4:udp\ncommand = x").unwrap();
        assert_eq!(conf.interface.as_deref(), Some("eth1"));
        assert_eq!(conf.doors[0].ports, DoorPorts::Steps("3,4:udp".parse().unwrap()));
        let other = &conf.doors[1];
        assert_eq!(other.start.ipv4.as_deref(), Some("a = b # no comment"));
        assert_eq!(other.start.ipv6.as_deref(), Some(""));
        assert_eq!((other.seq_timeout, other.target), (3, "2001:db8::1".parse().ok()));
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        for (from, to, line, says) in [
            ("[options]", "port = 1", 1, "before any section"),
            ("logfile = /var", "logfiles = /var", 2, "[options] has"),
            ("logfile = /var/log/knockd.log", "usesyslog = yes", 2, "[options] has"),
            ("8881:tcp", "0:tcp", 4, "a step is a port"),
            ("8881:tcp", "http", 4, "a step is a port"),
            ("seq_timeout   = 15", "seq_timeout = soon", 5, "number of seconds"),
            ("seq_timeout   = 15", "seq_timeout", 5, "needs a value"),
            ("tcpflags      = syn", "tcpflags = sin", 6, "sin"),
            ("start_command", "start_comand", 7, "a door has no start_comand"),
            ("cmd_timeout   = 10", "cmd_timeout = 0", 8, "1 at least"),
            ("stop_command ", "target =", 9, "an IPv4 or IPv6 address"),
            ("        sequence      = 8881:tcp,7777:tcp,9991:tcp\n", "", 3, "no sequence"),
        ] {
            let text = WIKI.replacen(from, to, 1);
            assert_ne!(text, WIKI, "{from}");
            let error = text.parse::<KnockdConf>().unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.message.contains(says), "{error}");
        }
        let twice = format!("{WIKI}{}", &WIKI[WIKI.find("[open").unwrap()..]);
        assert!(twice.parse::<KnockdConf>().unwrap_err().message.contains("another door"));
    }
}
