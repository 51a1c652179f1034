//! For iptables-restore and ip6tables-restore, with the `recent` match.
//!
//! A list of `recent` has room for 100 addresses unless the module is told otherwise, and a new one pushes out the one
//! that was seen longest ago. Anybody can send the first step from addresses that he makes up, so that step goes into
//! sixteen lists, by the last four bits of the address; only who knows the second step gets into a later list.

use super::words::{Text, Use, head};
use super::{Knocked, Ruleset, STRAYS};
use postern_proto::{Port, Protocol};

/// Lists of the first step.
const LISTS: u8 = 16;
/// Addresses in a list, unless the module is told otherwise.
const ROOM: u32 = 100;

/// IPv4 or IPv6: each has its own program, and its own lists, which would else share their room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    const fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// The match for the addresses of one of the sixteen lists.
    fn share(self, list: u8) -> String {
        match self {
            Self::V4 => format!("-s 0.0.0.{list}/0.0.0.{}", LISTS - 1),
            Self::V6 => format!("-s ::{list:x}/::{:x}", LISTS - 1),
        }
    }
}

pub(super) fn print(ruleset: &Ruleset, family: Family) -> String {
    let mut rules = Rules { ruleset, family, chain: format!("KNOCK-{}", ruleset.name), text: Text::new() };
    rules.head();
    rules.text.line("*filter");
    let chains = rules.chains();
    rules.text.lines(chains.iter().map(|chain| format!(":{chain} - [0:0]")));
    rules.entrance();
    rules.door();
    rules.ways();
    for port in ruleset.ports() {
        rules.knocked(&port);
    }
    if ruleset.last() > 1 {
        rules.stray();
        rules.count();
        rules.end();
        rules.forget();
    }
    rules.text.line("COMMIT");
    rules.text.finish()
}

struct Rules<'a> {
    ruleset: &'a Ruleset,
    family: Family,
    /// The chain that INPUT jumps to, and what the names of all others begin with.
    chain: String,
    text: Text,
}

impl Rules<'_> {
    fn head(&mut self) {
        let (chain, family, ruleset) = (self.chain.clone(), self.family, self.ruleset);
        let program = family.program();
        let suffixes: Vec<_> = self.suffixes().iter().map(|suffix| format!(",-{suffix}")).collect();
        let (version, other) = match family {
            Family::V4 => (4, "IPv6 stays as open as it is: load rules for it too, from --output ip6tables."),
            Family::V6 => (6, "IPv4 stays as open as it is: load rules for it too, from --output iptables."),
        };
        let mut limits = vec![other.to_owned()];
        limits.push(format!(
            "The kernel remembers {ROOM} addresses in a list, and forgets the oldest for a new one. The first step, which \
             anybody can send in the name of any address, goes into {LISTS} lists, by the last four bits of the address: \
             {ROOM} made-up addresses that agree with the client's in these crowd it out, about {} at random. {} With \
             `options xt_recent ip_list_tot=10000` in /etc/modprobe.d/ before the module is loaded, or \
             xt_recent.ip_list_tot=10000 on the kernel's command line where it is built in, each list has room for 10000.",
            ROOM * u32::from(LISTS),
            if ruleset.last() == 1 {
                "It is let in no more then, and has to knock again."
            } else {
                "They have to come between its first step and its second; it has to knock again then. At the most \
                 100 addresses are let in at a time."
            }
        ));
        let how = Use {
            nmap: if family == Family::V4 { "nmap" } else { "nmap -6" },
            reader: &format!("{program}-restore (IPv{version})"),
            load: &[format!(
                "{program}-restore --noflush FILE     # once; to load it again, take it out before"
            )],
            boot: &[
                format!(
                    "{program}-save > /etc/iptables/rules.v{version}     # Debian, with iptables-persistent"
                ),
                format!("{program}-save > /etc/iptables/{program}.rules     # Arch, with {program}.service"),
            ],
            out: &[
                format!("{program} -D INPUT -j {chain}"),
                // A list of one is none to bash.
                format!(
                    "for do in F X; do for chain in {chain}{{{}}}; do {program} -$do $chain; done; done     # bash",
                    suffixes.concat()
                ),
            ],
            limits: &limits,
        };
        head(&mut self.text, ruleset, &how);
    }

    /// What the names of the other chains end with.
    fn suffixes(&self) -> Vec<String> {
        let steps: Vec<_> = self.ruleset.ports().iter().map(|port| port.number().to_string()).collect();
        let others: &[_] = if self.ruleset.last() > 1 { &["STRAY", "COUNT", "END", "FORGET"] } else { &[] };
        [steps, others.iter().map(|&name| name.to_owned()).collect()].concat()
    }

    fn chains(&self) -> Vec<String> {
        let others = self.suffixes().into_iter().map(|suffix| format!("{}-{suffix}", self.chain));
        [self.chain.clone()].into_iter().chain(others).collect()
    }

    fn entrance(&mut self) {
        let (chain, door) = (self.chain.clone(), to(self.ruleset.door));
        self.comment(
            "Before every other rule. This host itself is not kept out, nor is what has begun already.",
        );
        self.text.line(&format!("-I INPUT -j {chain}"));
        self.rule("", "-i lo -j RETURN");
        self.rule("", &format!("{door} -m conntrack --ctstate ESTABLISHED -j ACCEPT"));
        self.rule("", "-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN");
    }

    fn door(&mut self) {
        let (door, window) = (to(self.ruleset.door), self.ruleset.window.as_secs());
        self.comment("The door: open to who has taken the last step, for so long; shut to everybody else, without an answer.");
        let open = self.each(self.ruleset.last(), |from, list| {
            format!("{from}{door} -m recent --rcheck --seconds {window} --name {list} -j ACCEPT")
        });
        self.rules("", open);
        self.rule("", &format!("{door} -j DROP"));
    }

    /// From the first chain to the others.
    fn ways(&mut self) {
        self.comment("The ports of the steps never answer.");
        for Knocked { port, steps } in self.ruleset.ports() {
            self.rule("", &format!("{} -g {}-{}", to(port), self.chain, steps[0]));
        }
        if self.ruleset.last() > 1 {
            let stray = format!("{}-STRAY", self.chain);
            self.comment(
                "What is new, and for another port. Whether it comes in, the rules behind these say.",
            );
            self.rule("", &format!("-p tcp --syn -j {stray}"));
            self.rule("", &format!("-p udp -j {stray}"));
        }
    }

    /// The chain of a port of the sequence.
    fn knocked(&mut self, knocked: &Knocked) {
        let (timeout, last) = (self.ruleset.timeout.as_secs(), self.ruleset.last());
        let suffix = format!("-{}", knocked.number());
        let is_first = knocked.number() == 1;
        let steps: Vec<_> = knocked.steps.iter().map(ToString::to_string).collect();
        self.comment(&match (is_first, last) {
            (true, 1) => format!("Step 1, {}: it opens.", knocked.port),
            (true, _) => format!(
                "Step {}, {}: it is remembered, and whoever begins has no strays.",
                steps.join(" and "),
                knocked.port
            ),
            (false, _) => format!(
                "Step {}, {}: counts after the step before. A packet that was sent twice is let be; one that comes out of \
                 turn ends the attempt.",
                steps.join(" and "),
                knocked.port
            ),
        });
        if knocked.port.protocol == Protocol::Tcp {
            self.rule(&suffix, "-p tcp ! --syn -j DROP");
        }
        for &step in knocked.steps.iter().rev().filter(|&&step| step > 1) {
            let then = if step == last { format!("-g {}-END", self.chain) } else { "-j DROP".to_owned() };
            let taken = self.list(step);
            let take = self.each(step - 1, |from, before| {
                format!(
                    "{from}-m recent --rcheck --seconds {timeout} --name {before} -m recent --set --name {taken} {then}"
                )
            });
            self.rules(&suffix, take);
        }
        if is_first {
            if last > 1 {
                let strays = self.named("STRAYS");
                self.rule(&suffix, &format!("-m recent --remove --name {strays}"));
            }
            let begin = self.each(1, |from, list| format!("{from}-m recent --set --name {list} -j DROP"));
            self.rules(&suffix, begin);
            return;
        }
        for &step in knocked.steps.iter().filter(|&&step| step < last) {
            let taken = self.list(step);
            self.rule(&suffix, &format!("-m recent --rcheck --seconds {timeout} --name {taken} -j DROP"));
        }
        self.rule(&suffix, &format!("-g {}-END", self.chain));
    }

    fn stray(&mut self) {
        let timeout = self.ruleset.timeout.as_secs();
        self.comment("A stray is one only from who has an attempt.");
        for step in 1..self.ruleset.last() {
            let rules = self.each(step, |from, list| {
                format!("{from}-m recent --rcheck --seconds {timeout} --name {list} -g {}-COUNT", self.chain)
            });
            self.rules("-STRAY", rules);
        }
    }

    fn count(&mut self) {
        let strays = self.named("STRAYS");
        // Never as many within a timeout as push an address out: half at once, and half spread over it.
        let half = ROOM / 2;
        let a_minute = (half * 60 / self.ruleset.timeout.as_secs()).max(1);
        self.comment(&format!(
            "Stray {} ends the attempt. The list of strays has room for {ROOM} addresses too: when more come than it can hold \
             for the time of a step, each ends its attempt at once, so that nobody hides strays behind those of others.",
            STRAYS + 1
        ));
        let forget = format!("-g {}-FORGET", self.chain);
        self.rule("-COUNT", &format!("-m recent --rcheck --hitcount {STRAYS} --name {strays} {forget}"));
        self.rule(
            "-COUNT",
            &format!("-m limit --limit {a_minute}/minute --limit-burst {half} -m recent --set --name {strays} -j RETURN"),
        );
        self.rule("-COUNT", &forget);
    }

    fn end(&mut self) {
        self.comment("The end of an attempt, right or wrong, without an answer.");
        self.rule("-END", &format!("-j {}-FORGET", self.chain));
        self.rule("-END", "-j DROP");
    }

    fn forget(&mut self) {
        self.comment("All attempts of an address are over. A door that is open to it stays open.");
        for step in 1..self.ruleset.last() {
            let rules = self.each(step, |from, list| format!("{from}-m recent --remove --name {list}"));
            self.rules("-FORGET", rules);
        }
        self.rule("-FORGET", &format!("-m recent --remove --name {}", self.named("STRAYS")));
    }

    /// A rule about the list of those who took a step; where that is sixteen lists, a rule for each.
    fn each(&self, step: usize, rule: impl Fn(&str, &str) -> String) -> Vec<String> {
        let list = self.list(step);
        if step > 1 {
            return vec![rule("", &list)];
        }
        (0..LISTS)
            .map(|share| rule(&format!("{} ", self.family.share(share)), &format!("{list}-{share}")))
            .collect()
    }

    /// The list of those who took a step.
    fn list(&self, step: usize) -> String {
        if step == self.ruleset.last() { self.named("OPEN") } else { self.named(&step.to_string()) }
    }

    fn named(&self, list: &str) -> String {
        let family = if self.family == Family::V6 { "6" } else { "" };
        format!("KNOCK{family}-{}-{list}", self.ruleset.name)
    }

    fn comment(&mut self, paragraph: &str) {
        self.text.line("");
        self.text.comment("", paragraph);
    }

    fn rule(&mut self, suffix: &str, rule: &str) {
        self.text.line(&format!("-A {}{suffix} {rule}", self.chain));
    }

    fn rules(&mut self, suffix: &str, rules: Vec<String>) {
        for rule in rules {
            self.rule(suffix, &rule);
        }
    }
}

fn to(port: Port) -> String {
    format!("-p {} --dport {}", port.protocol.as_str(), port.number)
}
