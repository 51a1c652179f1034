//! Which keys sign for a client: one that is given, or those in a file of the administrator's.

use std::path::{Path, PathBuf};

use postern_proto::IdentityKey;
use postern_proto::identity::IdentityError;

use super::{LONGEST_FILE, given, read_given};
use crate::cli::client::Signing;
use crate::config::ConfigError;
use crate::config::authorized::{AuthorizedFile, read_file};

/// What a command line says of them.
///
/// # Errors
/// [`ConfigError`] when a file cannot be read, or is not what it should be.
pub(super) fn read(signing: &Signing) -> Result<(Option<IdentityKey>, Option<PathBuf>), ConfigError> {
    let identity = signing.ssh_key.as_deref().map(read_key).transpose()?;
    if let Some(path) = signing.authorized_keys.as_deref().filter(|path| path.to_str().is_none()) {
        let problem = "the key file, which is UTF-8, cannot name it: give it another name".to_owned();
        return Err(ConfigError::Unfit { path: path.to_owned(), problem });
    }
    Ok((identity, signing.authorized_keys.clone()))
}

/// The one key in a file; no error repeats what stands in it.
fn read_key(path: &Path) -> Result<IdentityKey, ConfigError> {
    let text = read_given(path, LONGEST_FILE)?;
    only_key(&text).map_err(|problem| ConfigError::Unfit { path: given(path), problem })
}

fn only_key(text: &str) -> Result<IdentityKey, String> {
    if text.contains("PRIVATE KEY-----") {
        return Err(IdentityError::Private.to_string());
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (mut keys, mut errors) = (Vec::new(), Vec::new());
    for key in lines.map(str::parse::<IdentityKey>) {
        match key {
            Ok(key) if keys.contains(&key) => {}
            Ok(key) => keys.push(key),
            Err(error) => errors.push(error),
        }
    }
    match (keys.pop(), errors.first()) {
        (Some(key), _) if keys.is_empty() => Ok(key),
        (Some(_), _) => {
            Err("has several keys: give one, or let the client have all of a file by --authorized-keys"
                .to_owned())
        }
        (None, error) => Err(error.unwrap_or(&IdentityError::NotAKey).to_string()),
    }
}

/// The keys of which one has to sign; none where the client need not. What is left out of a file is said.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read, others may change it, or none of its keys can sign.
pub(super) fn keys(
    identity: Option<&IdentityKey>,
    authorized: Option<&Path>,
) -> Result<Vec<IdentityKey>, ConfigError> {
    let Some(path) = authorized else { return Ok(identity.into_iter().cloned().collect()) };
    let AuthorizedFile { keys, remark } = read_file(path)?;
    if let Some(remark) = remark {
        eprintln!("warning: {remark}");
    }
    Ok(keys)
}

/// Who signs, in the words of messages; nothing where nobody does.
pub(super) fn names(keys: &[IdentityKey]) -> String {
    let named = |key: &IdentityKey| key.fingerprint();
    match keys {
        [] => String::new(),
        [_, _, _, ..] => format!(", signs with one of {} keys", keys.len()),
        keys => format!(", signs with {}", keys.iter().map(named).collect::<Vec<_>>().join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";

    #[test]
    fn a_file_holds_one_key_and_its_errors_nothing_of_it() {
        let other = ONE.replace("XFSqti", "XFSqtj");
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7 a@b";
        for good in [
            ONE.to_owned(),
            format!("\n# mine\n{ONE}\r\n"),
            format!("{ONE}\n{ONE} again\n"),
            format!("{rsa}\n{ONE}\n"),
        ] {
            assert_eq!(
                only_key(&good).unwrap().to_string().split(' ').nth(1),
                ONE.split(' ').nth(1),
                "{good}"
            );
        }
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n";
        for (bad, says) in [
            (private.to_owned(), ".pub file"),
            (format!("Proc-Type: 4\n{private}{ONE}"), ".pub file"),
            (format!("{ONE}\n{other}\n"), "--authorized-keys"),
            (rsa.to_owned(), "ssh-keygen -t ed25519"),
            (String::new(), "one line"),
            ("c2VjcmV0\n".to_owned(), "one line"),
        ] {
            let error = only_key(&bad).unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
    }

    #[test]
    fn a_file_of_keys_is_named_by_its_whole_path_and_has_one_at_least() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let error = |path: &Path| keys(None, Some(path)).unwrap_err().to_string();
        assert!(error(Path::new("keys")).contains("from / on"));
        assert!(error(&path).contains("No such file"));
        std::fs::write(&path, "# nobody\n").unwrap();
        assert!(error(&path).contains("no key that can sign"));
        std::fs::write(&path, ONE).unwrap();
        assert_eq!(keys(None, Some(&path)).unwrap(), [ONE.parse().unwrap()]);
        assert!(keys(None, None).unwrap().is_empty());
    }
}
