//! The `authorized_keys` files that clients' entries point to. They are the administrator's, as the key file is: what a user of
//! the host could change, itself or by a folder above it, is refused, for nobody else decides who may knock, and root parses
//! nobody else's text.
//!
//! A file that cannot be used keeps its client out, and nobody else: whoever deletes the file of somebody who has left must not
//! stop the gate with it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use postern_proto::IdentityKey;
use postern_proto::identity::MAX_IDENTITIES;
use postern_proto::keyfile::ClientEntry;

use super::{ConfigError, Exposure, read_safe};
use crate::front::gate::Authorized;

/// What a file has.
pub(crate) struct AuthorizedFile {
    /// The keys that can sign knocks.
    pub(crate) keys: Vec<IdentityKey>,
    /// What should be known of the others.
    pub(crate) remark: Option<String>,
}

/// Reads the files of all clients, and says of which of them something should be known.
pub(super) fn read(clients: &[ClientEntry]) -> (Authorized, Vec<String>) {
    let (mut authorized, mut remarks) = (Authorized::new(), Vec::new());
    for client in clients {
        let Some(path) = &client.authorized_keys else { continue };
        let (name, mut keys) = (&client.name, Vec::new());
        match read_file(path) {
            Ok(file) => {
                remarks.extend(file.remark.map(|remark| format!("client {name}: {remark}")));
                keys = file.keys;
            }
            Err(error) => remarks.push(format!("client {name} cannot knock: {error}")),
        }
        authorized.insert(client.id, keys);
    }
    (authorized, remarks)
}

/// Reads one of them.
///
/// # Errors
/// [`ConfigError`] when it cannot be read, others may change it, or none of its keys can sign.
pub(crate) fn read_file(path: &Path) -> Result<AuthorizedFile, ConfigError> {
    let unfit = |problem: String| ConfigError::Unfit { path: path.to_owned(), problem };
    if !path.is_absolute() {
        return Err(unfit("write the whole path, from / on".to_owned()));
    }
    let real = fs::canonicalize(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    if real != path {
        return Err(unfit(format!("leads to {} by a link: name that", real.display())));
    }
    for folder in path.ancestors().skip(1) {
        let is_safe = only_administrators_change(folder)
            .map_err(|cause| ConfigError::Read { path: folder.to_owned(), cause })?;
        if !is_safe {
            return Err(unfit(format!(
                "others than root can change {}, and so the file: keep it below /etc/postern",
                folder.display()
            )));
        }
    }
    let (keys, left_out) = IdentityKey::authorized(&read_safe(path, Exposure::NotWritable)?);
    if keys.is_empty() {
        return Err(unfit(
            "has no key that can sign: only Ed25519 keys do, also in security keys, without options that limit them"
                .to_owned(),
        ));
    }
    let remark = (left_out > 0).then(|| {
        let lines = if left_out == 1 { "1 line".to_owned() } else { format!("{left_out} lines") };
        format!(
            "{lines} of {} left out: only Ed25519 keys sign knocks, without options that limit them (from, expiry-time, \
             verify-required, cert-authority), and {MAX_IDENTITIES} at the most",
            path.display()
        )
    });
    Ok(AuthorizedFile { keys, remark })
}

/// Whether a folder is root's, or whoever runs this, and nobody else can put something else in the place of what is in it.
fn only_administrators_change(folder: &Path) -> io::Result<bool> {
    const STICKY: u32 = 0o1000;
    let metadata = fs::metadata(folder)?;
    let is_ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    Ok(is_ours && (metadata.mode() & 0o022 == 0 || metadata.mode() & STICKY != 0))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use postern_proto::{ClientId, ClientSecret};

    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";

    #[test]
    fn only_what_nobody_else_can_change_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, link) = (folder.path().join("keys.d"), folder.path().join("link"));
        fs::create_dir(&inner).unwrap();
        let (file, by_link) = (inner.join("alice"), link.join("alice"));
        fs::write(&file, format!("{ONE}\nssh-rsa AAAA b@c\n")).unwrap();
        symlink(&inner, &link).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let error = |path: &Path| read_file(path).err().map(|error| error.to_string()).unwrap_or_default();

        mode(&file, 0o644);
        let read = read_file(&file).unwrap();
        assert_eq!(read.keys, [ONE.parse().unwrap()]);
        assert!(read.remark.unwrap().starts_with("1 line of "));
        assert!(error(&by_link).contains("by a link"), "{}", error(&by_link));
        assert!(error(Path::new("keys.d/alice")).contains("the whole path"));
        mode(&inner, 0o775);
        assert!(error(&file).contains("others than root can change"), "{}", error(&file));
        mode(&inner, 0o755);
        mode(&file, 0o664);
        assert!(error(&file).contains("lets others change it"), "{}", error(&file));
        mode(&file, 0o644);
        fs::write(&file, "# nobody any more\n").unwrap();
        assert!(error(&file).contains("no key that can sign"), "{}", error(&file));
        fs::remove_file(&file).unwrap();
        assert!(error(&file).contains("No such file"), "{}", error(&file));
    }

    #[test]
    fn a_file_that_is_gone_keeps_its_client_out_and_nobody_else() {
        let entry = |number: u8, file: &str| {
            let (id, secret) = (ClientId::from_bytes([number; 8]), ClientSecret::from_bytes([number; 32]));
            let name = format!("client-{number}").parse().unwrap();
            let entry = ClientEntry::new(name, id, secret, vec!["ssh".parse().unwrap()]);
            ClientEntry { authorized_keys: Some(file.into()).filter(|_| !file.is_empty()), ..entry }
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("two");
        fs::write(&file, ONE).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let clients = [entry(1, ""), entry(2, file.to_str().unwrap()), entry(3, "/nonexistent/keys")];
        let (authorized, remarks) = read(&clients);
        let keys = |client: &ClientEntry| authorized.get(&client.id).map(Vec::len);
        assert_eq!(clients.each_ref().map(keys), [None, Some(1), Some(0)]);
        assert_eq!(remarks.len(), 1);
        assert!(remarks[0].starts_with("client client-3 cannot knock: /nonexistent"), "{remarks:?}");
    }
}
