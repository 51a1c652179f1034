//! The keys in an `authorized_keys` file (sshd(8)), as far as a gate keeps what the file says of them.
//!
//! Its lines are taken apart as sshd does it, quotation by quotation: whoever sees an option end elsewhere than sshd takes a
//! key whose limit it has not seen. What is doubtful is left out.

use crate::identity::{IdentityError, IdentityKey, MAX_IDENTITIES};

/// Options of sshd that say what somebody may do once he is in, and nothing of who comes in.
const SESSION_OPTIONS: [&str; 17] = [
    "agent-forwarding",
    "command",
    "environment",
    "no-agent-forwarding",
    "no-port-forwarding",
    "no-pty",
    "no-touch-required",
    "no-user-rc",
    "no-X11-forwarding",
    "permitlisten",
    "permitopen",
    "port-forwarding",
    "pty",
    "restrict",
    "tunnel",
    "user-rc",
    "X11-forwarding",
];

impl IdentityKey {
    /// The keys of an `authorized_keys` file that can sign knocks, and how many of its lines were left out: keys of another
    /// kind, those beyond [`MAX_IDENTITIES`], and those with an option that is not about the session behind the login
    /// (`cert-authority`, `from`, `expiry-time`, `verify-required`, and whatever is none), for a gate does not check these.
    #[must_use]
    pub fn authorized(text: &str) -> (Vec<Self>, usize) {
        let (mut keys, mut left_out) = (Vec::new(), 0);
        for line in
            text.lines().map(str::trim_ascii).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            match key(line) {
                Some(key) if keys.contains(&key) => {}
                Some(key) if keys.len() < MAX_IDENTITIES => keys.push(key),
                _ => left_out += 1,
            }
        }
        (keys, left_out)
    }
}

/// The key of a line, if nothing that a gate does not check limits it.
fn key(line: &str) -> Option<IdentityKey> {
    // sshd, too, looks for a key first.
    if let Ok(key) = public_key(line) {
        return Some(key);
    }
    let (mut options, mut rest) = (Vec::new(), line);
    loop {
        let option;
        (option, rest) = rest.split_at(end_of_option(rest)?);
        options.push(option);
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => break,
        }
    }
    if options.into_iter().all(is_about_the_session) { public_key(rest).ok() } else { None }
}

/// Whatever blanks are between its parts.
fn public_key(text: &str) -> Result<IdentityKey, IdentityError> {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ").parse()
}

/// Where an option ends: at the first blank or comma outside of quotation marks. Nothing where these do not end.
fn end_of_option(text: &str) -> Option<usize> {
    let (mut is_quoted, mut before) = (false, ' ');
    for (at, char) in text.char_indices() {
        match char {
            // Inside of quotation marks or not, this one is none.
            '"' if before == '\\' => {}
            '"' => is_quoted = !is_quoted,
            ' ' | '\t' | ',' if !is_quoted => return Some(at),
            _ => {}
        }
        before = char;
    }
    None
}

fn is_about_the_session(option: &str) -> bool {
    let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    SESSION_OPTIONS.iter().any(|known| name.eq_ignore_ascii_case(known)) && value.is_none_or(is_quoted_whole)
}

/// Between one pair of quotation marks, with nothing behind it.
fn is_quoted_whole(value: &str) -> bool {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.is_some_and(|inner| !inner.replace("\\\"", "").contains('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[test]
    fn those_are_taken_that_can_sign_and_nothing_limits() {
        for (before, behind) in [
            ("", ""),
            ("", " alice@laptop"),
            (" \t", "  of  alice"),
            ("restrict ", ""),
            ("restrict,no-PTY\t", " phone"),
            ("command=\"ls -l, or not\" ", " x"),
            ("command=\"echo \\\"hi\\\" there\",pty ", ""),
            ("command=\"echo\\\"hi\" ", " from=\"192.0.2.1\""),
            ("environment=\"A=b\",command=\"\" ", " x"),
        ] {
            let line = format!("{before}{KEY}{behind}\n");
            assert_eq!(IdentityKey::authorized(&line), (vec![KEY.parse().unwrap()], 0), "{line}");
        }
    }

    #[test]
    fn what_limits_a_key_or_is_doubtful_leaves_it_out() {
        for before in [
            "from=\"192.0.2.1\" ",
            "form=\"192.0.2.1\" ",
            "FROM=\"192.0.2.1\",pty ",
            "pty,expiry-time=\"20270101\" ",
            "cert-authority ",
            "verify-required,restrict ",
            // Only who takes an escaped quotation mark for an end sees no `from` here.
            "command=\"echo\\\"hi\",from=\"192.0.2.1\" ",
            "command=\"a\\\"b\\\"c\\\"\",from=\"192.0.2.1\" ",
            "command=\"echo\\\\\"hi\",from=\"192.0.2.1\" ",
            "command=\"ls\"pty ",
            "command=ls ",
            "command=\"ls ",
            "command=\"ls\\\" ",
            "pty,,restrict ",
            ",pty ",
            "pty, restrict ",
            "alice:x:1000: ",
        ] {
            let line = format!("{before}{KEY} x\n");
            assert_eq!(IdentityKey::authorized(&line), (vec![], 1), "{line}");
        }
        let text =
            format!("# of alice\n\n{KEY} one\n{KEY} again\nssh-rsa AAAA a@b\nnonsense\nrestrict\n\"\n");
        assert_eq!(IdentityKey::authorized(&text), (vec![KEY.parse().unwrap()], 4));
    }
}
