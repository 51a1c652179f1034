//! What a gate under test is configured with.

use std::path::Path;

use postern_proto::GateId;

use crate::netns::Family;

/// The service that tests open.
pub const SSH: u16 = 22;
/// The service beside it, for which nobody knocks.
pub const WEB: u16 = 8080;
/// The services of every gate.
pub const SERVICES: [(&str, u16); 2] = [("ssh", SSH), ("web", WEB)];
/// The knock ports of every gate. Nothing listens there: capturing needs no socket.
pub const KNOCK_PORTS: [u16; 2] = [62_201, 443];

/// The user that its processes run as: one that every Debian has.
pub const USER: &str = "nobody";

/// The group that may ask a gate beside root: another one that every Debian has.
pub const GROUP: &str = "daemon";

/// Which firewall holds the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
    /// nftables, without iptables.
    Nftables,
}

impl Variant {
    /// Both kinds of iptables.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
    /// Every firewall.
    pub const BACKENDS: [Self; 3] = [Self::Nft, Self::Legacy, Self::Nftables];

    /// The kind of iptables in `posternd.toml`, and in the names of programs: a host with nftables has the usual one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft | Self::Nftables => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// `firewall.backend`.
    #[must_use]
    pub const fn backend(self) -> &'static str {
        match self {
            Self::Nft | Self::Legacy => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// Its program, with a suffix such as `-save`.
    #[must_use]
    pub fn program(self, family: Family, suffix: &str) -> String {
        let family = if family == Family::V4 { "iptables" } else { "ip6tables" };
        format!("{family}-{}{suffix}", self.name())
    }
}

/// What a test wants of its gate.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `firewall.variant`.
    pub variant: Variant,
    /// `services.*.window`, in seconds.
    pub window_secs: u32,
    /// `gate.tolerance`, in seconds.
    pub tolerance_secs: u32,
    /// `firewall.guard`.
    pub guard: &'static str,
    /// `firewall.grants`.
    pub grants: &'static str,
    /// `services.*.established`.
    pub established: &'static str,
    /// `firewall.always-allow`.
    pub always_allow: &'static [&'static str],
    /// `gate.interfaces`; any when empty.
    pub interfaces: &'static [&'static str],
    /// `gate.ports`.
    pub ports: [u16; 2],
    /// `gate.answer`.
    pub answer: bool,
    /// `gate.kernel-filter`.
    pub kernel_filter: &'static str,
    /// `process.user`.
    pub user: &'static str,
    /// `POSTERND_LOG`.
    pub log: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Settings {
    /// What most tests want.
    pub const DEFAULT: Self = Self {
        variant: Variant::Nft,
        window_secs: 3,
        guard: "drop",
        grants: "accept",
        established: "keep",
        always_allow: &[],
        interfaces: &[],
        ports: KNOCK_PORTS,
        tolerance_secs: 60,
        answer: true,
        kernel_filter: "auto",
        user: USER,
        log: "debug",
    };

    /// The configuration file.
    #[must_use]
    pub fn to_toml(&self, id: &GateId, state: &Path) -> String {
        let Self {
            window_secs, guard, grants, established, always_allow, ports, tolerance_secs, user, ..
        } = self;
        let (id, state, variant) = (id.to_text(), state.display(), self.variant.name());
        let backend = self.variant.backend();
        // What accept promises, nftables cannot keep.
        let grants = match (self.variant, *grants) {
            (Variant::Nftables, "accept") => String::new(),
            _ => format!("grants = \"{grants}\"\n"),
        };
        let interfaces = match self.interfaces {
            [] => String::new(),
            names => format!("interfaces = {names:?}\n"),
        };
        let kernel_filter = match self.kernel_filter {
            "auto" => String::new(),
            other => format!("kernel-filter = \"{other}\"\n"),
        };
        let answer = if self.answer { "" } else { "answer = false\n" };
        let service = |(name, port)| {
            format!(
                "[services.{name}]\n\
                 ports = [\"{port}/tcp\"]\n\
                 window = \"{window_secs}s\"\n\
                 established = \"{established}\"\n"
            )
        };
        format!(
            "[gate]\n\
             id = \"{}\"\n\
             ports = {ports:?}\n\
             tolerance = \"{tolerance_secs}s\"\n\
             {answer}\
             {kernel_filter}\
             {interfaces}\
             state = \"{state}\"\n\
             {}\
             [firewall]\n\
             backend = \"{backend}\"\n\
             variant = \"{variant}\"\n\
             guard = \"{guard}\"\n\
             {grants}\
             always-allow = {always_allow:?}\n\
             [process]\n\
             user = \"{user}\"\n\
             [admin]\n\
             socket = \"admin.sock\"\n\
             group = \"{GROUP}\"\n",
            *id,
            SERVICES.map(service).concat()
        )
    }
}
