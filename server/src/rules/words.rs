//! The comments of a ruleset: what it does, how it is used, and what it cannot do.

use postern_proto::Protocol;

use super::{Ruleset, STRAYS};

/// Where a comment is folded.
const WIDTH: usize = 100;

/// A ruleset that is being written.
pub(super) struct Text(String);

impl Text {
    pub(super) fn new() -> Self {
        Self(String::new())
    }

    pub(super) fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    pub(super) fn lines(&mut self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            self.line(&line);
        }
    }

    /// A paragraph, folded, with `indent` before each line.
    pub(super) fn comment(&mut self, indent: &str, paragraph: &str) {
        self.folded(&format!("{indent}# "), &format!("{indent}# "), paragraph);
    }

    /// A paragraph under a dash.
    pub(super) fn item(&mut self, paragraph: &str) {
        self.folded("# - ", "#   ", paragraph);
    }

    fn folded(&mut self, first: &str, next: &str, paragraph: &str) {
        let mut line = first.to_owned();
        let mut is_empty = true;
        for word in paragraph.split(' ') {
            if !is_empty && line.len() + 1 + word.len() > WIDTH {
                self.line(&line);
                next.clone_into(&mut line);
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        self.line(&line);
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// How a ruleset is loaded, kept and taken out, one command a line.
pub(super) struct Use<'a> {
    pub(super) nmap: &'a str,
    pub(super) reader: &'a str,
    pub(super) load: &'a [String],
    pub(super) boot: &'a [String],
    pub(super) out: &'a [String],
    /// What it cannot do, beside what no sequence can.
    pub(super) limits: &'a [String],
}

/// The head of a ruleset.
pub(super) fn head(text: &mut Text, ruleset: &Ruleset, how: &Use<'_>) {
    let Ruleset { steps, door, window, timeout, .. } = ruleset;
    let steps: Vec<_> =
        steps.iter().map(|step| format!("{}:{}", step.number, step.protocol.as_str())).collect();
    let steps = steps.join(",");
    let one_by_one = if ruleset.last() == 1 {
        String::new()
    } else {
        format!(" Each step is to come within {timeout} of the one before.")
    };
    text.comment(
        "",
        &format!(
            "Port knocking without a daemon: {steps} opens {door} for {window} to the address that knocked, and to nobody \
             else.{one_by_one} Sessions that have begun go on. For {}.",
            how.reader
        ),
    );
    text.line("#");
    text.comment("", "Keep a session open until a second one has come in by knocking. Traffic of this host with itself is let be.");
    text.line("#");
    let knock = [knock(ruleset, how.nmap)];
    for (what, commands) in
        [("Load", how.load), ("At boot", how.boot), ("Knock", &knock), ("Take out", how.out)]
    {
        text.line(&format!("# {what}:"));
        text.lines(commands.iter().map(|command| format!("#     {command}")));
    }
    text.line("#");
    text.line("# What it cannot do:");
    limits(text, ruleset);
    for limit in how.limits {
        text.item(limit);
    }
}

/// What lets a person try it, from another machine.
fn knock(ruleset: &Ruleset, nmap: &str) -> String {
    let step = |step: &postern_proto::Port| match step.protocol {
        Protocol::Tcp => format!("'-p {}'", step.number),
        Protocol::Udp => format!("'-sU -p {}'", step.number),
    };
    let steps: Vec<_> = ruleset.steps.iter().map(step).collect();
    format!(
        "for step in {}; do {nmap} -n -Pn --host-timeout 201ms --max-retries 0 $step HOST; done",
        steps.join(" ")
    )
}

fn limits(text: &mut Text, ruleset: &Ruleset) {
    text.item(
        "Whoever sees the knocks on their way can send them again, from any address, and is let in. Let what is behind the \
         door ask for a key.",
    );
    text.item("Everybody who shares the address that knocked, behind a NAT, is let in with it.");
    if ruleset.last() == 1 {
        text.item(
            "One step is no secret: every scan of ports sends it, and opens the door to whoever scans.",
        );
        return;
    }
    text.item("Whoever sends packets in the name of the address that knocks can end its attempt.");
    text.item(&format!(
        "More than {STRAYS} new connections or datagrams from that address to other ports of this host, between its first \
         step and its last, end the attempt: that is how a scan is told from a knock."
    ));
    if ruleset.opens_to_a_scan() {
        text.item(
            "THESE PORTS LIE SIDE BY SIDE AND IN ORDER: a scan that takes ports in order opens the door. Take others.",
        );
    }
}
