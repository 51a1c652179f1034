//! ssh's configuration: the block that has ssh go through a gate, and its place in a file that people write too.
//!
//! ssh takes the first value that it meets, so the block stands at the head of the file, before anything that could give
//! these hosts another `ProxyCommand`. What stood there first was for every host, and would belong to the block's hosts
//! alone: so the block ends with `Host *`. Between its marks it is replaced; outside of them not one byte changes.
//!
//! It has neither `HostKeyAlias` nor `HostName`: ssh looks a host's key up under the name that was typed, as it does
//! without Postern. Addresses that are known stay known, and host certificates and SSHFP records, which are made for
//! them, hold. A gate's own name is asked about once; ssh says then under which other names it knows the key.

use std::fmt;
use std::num::NonZeroU16;
use std::ops::Range;

use postern_proto::GateName;

/// The block of one gate.
pub(crate) struct Block {
    pub(crate) gate: GateName,
    /// What people call it: its name, and its addresses.
    pub(crate) hosts: Vec<String>,
    /// Where it has ssh, unless that is ssh's own port.
    pub(crate) port: Option<NonZeroU16>,
    /// What to run, as the shell and ssh read it.
    pub(crate) proxy: String,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Host {}", self.hosts.join(" "))?;
        if let Some(port) = self.port {
            writeln!(f, "    Port {port}")?;
        }
        writeln!(f, "    ProxyCommand {}", self.proxy)
    }
}

/// Why a file has no place for a block: its line, from 1, and what is wrong there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadMark {
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl Block {
    /// The file with this block: in the place of an earlier one of the same gate, else at its head.
    pub(crate) fn put_into(&self, old: &[u8]) -> Result<Vec<u8>, BadMark> {
        let (before, after) = match self.find(old)? {
            Some(place) => (&old[..place.start], &old[place.end..]),
            None => (&[][..], old),
        };
        let is_new = before.len() + after.len() == old.len();
        let gap = if is_new && !old.is_empty() { "\n" } else { "" };
        Ok([before, self.marked().as_bytes(), gap.as_bytes(), after].concat())
    }

    fn marked(&self) -> String {
        let gate = &self.gate;
        format!(
            "{}\n# `postern ssh-config {gate} --install` wrote this, and replaces it up to the next mark.\n{self}\
             # What follows is for every host again.\nHost *\n{}\n",
            self.begin(),
            self.end()
        )
    }

    fn begin(&self) -> String {
        format!("# >>> postern {} >>>", self.gate)
    }

    fn end(&self) -> String {
        format!("# <<< postern {} <<<", self.gate)
    }

    /// Where the gate's block is, with its marks and the end of their last line.
    fn find(&self, text: &[u8]) -> Result<Option<Range<usize>>, BadMark> {
        let (begin, end) = (self.begin(), self.end());
        let mut open: Option<(usize, usize)> = None;
        let mut found = None;
        let mut offset = 0;
        for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let (line_number, next) = (index + 1, offset + line.len());
            let bad = |message: &str| BadMark { line: line_number, message: message.to_owned() };
            let line = line.trim_ascii();
            if line == begin.as_bytes() {
                if open.is_some() || found.is_some() {
                    return Err(bad("the block of this gate begins a second time: take one of them out"));
                }
                open = Some((offset, line_number));
            } else if line == end.as_bytes() {
                let Some((start, _)) = open.take() else {
                    return Err(bad(
                        "the block of this gate ends here, and does not begin before: take the line out",
                    ));
                };
                found = Some(start..next);
            } else if open.is_some() && line.starts_with(b"# >>> postern ") {
                return Err(bad(&format!("another block begins within one: put `{end}` before it")));
            }
            offset = next;
        }
        match open {
            Some((_, line)) => {
                let message = format!("the block that begins here does not end: put `{end}` behind it");
                Err(BadMark { line, message })
            }
            None => Ok(found),
        }
    }
}

/// A word for the shell that ssh has run a `ProxyCommand`, with what ssh would expand in it escaped. `None` when no word
/// of ssh's configuration, which is one line and reads backslashes, can stand for it.
pub(crate) fn word(text: &str) -> Option<String> {
    if text.contains(|c: char| c.is_control() || c == '\\') {
        return None;
    }
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:,@".contains(&b);
    let escaped = text.replace('%', "%%");
    Some(if !text.is_empty() && text.bytes().all(is_plain) {
        escaped
    } else {
        format!("'{}'", escaped.replace('\'', r"'\''"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(gate: &str) -> Block {
        let hosts = vec![gate.to_owned(), "192.0.2.1".to_owned()];
        Block { gate: gate.parse().unwrap(), hosts, port: None, proxy: "postern proxy %h %p".to_owned() }
    }

    fn put(block: &Block, old: &str) -> String {
        String::from_utf8(block.put_into(old.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_block_comes_first_and_is_replaced_where_it_stands() {
        let old = "User alice\n\nHost *\r\n    ForwardAgent no";
        let first = put(&block("one"), old);
        assert_eq!(
            first,
            format!(
                "# >>> postern one >>>\n# `postern ssh-config one --install` wrote this, and replaces it up to the \
                 next mark.\nHost one 192.0.2.1\n    ProxyCommand postern proxy %h %p\n# What follows is for every \
                 host again.\nHost *\n# <<< postern one <<<\n\n{old}"
            )
        );
        assert_eq!(put(&block("one"), &first), first);
        let both = put(&block("two"), &first);
        assert!(
            both.ends_with(&format!("\n\n{first}")) && both.starts_with("# >>> postern two >>>\n"),
            "{both}"
        );
        assert_eq!(put(&block("one"), &both), both);
        let changed = Block { port: NonZeroU16::new(2222), ..block("one") };
        assert_eq!(
            put(&changed, &both),
            both.replace("Host one 192.0.2.1\n", "Host one 192.0.2.1\n    Port 2222\n")
        );
        assert_eq!(put(&block("one"), ""), first[..first.len() - old.len() - 1]);
        // A name that begins like another is another.
        assert!(put(&block("on"), &both).starts_with("# >>> postern on >>>\n"));
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let old = b"# caf\xe9\r\nHost x\n";
        let new = block("one").put_into(old).unwrap();
        assert!(new.ends_with(old));
        assert_eq!(block("one").put_into(&new).unwrap(), new);
    }

    #[test]
    fn marks_that_do_not_pair_are_named_with_their_line() {
        let (begin, end) = ("# >>> postern one >>>\n", "# <<< postern one <<<\n");
        for (text, line, says) in [
            (format!("a\n{begin}b\n"), 2, "put `# <<< postern one <<<` behind it"),
            (format!("a\nb\n{end}"), 3, "does not begin before"),
            (format!("{begin}{end}{begin}{end}"), 3, "a second time"),
            (format!("{begin}{begin}{end}"), 2, "a second time"),
            (format!("{begin}# >>> postern two >>>\n{end}"), 2, "another block begins within one"),
        ] {
            let bad = block("one").put_into(text.as_bytes()).unwrap_err();
            assert_eq!(bad.line, line, "{text}{}", bad.message);
            assert!(bad.message.contains(says), "{}", bad.message);
        }
    }

    #[test]
    fn words_are_those_of_the_shell_and_of_ssh() {
        for (text, expected) in [
            ("/usr/bin/postern", "/usr/bin/postern"),
            ("/my files/p", "'/my files/p'"),
            ("/100%/$p\"#~", "'/100%%/$p\"#~'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(word(text).as_deref(), Some(expected), "{text}");
        }
        for bad in ["a\nb", "a\\b", "a\tb"] {
            assert_eq!(word(bad), None, "{bad}");
        }
    }
}
