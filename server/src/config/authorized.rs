//! The `authorized_keys` files that clients' entries point to. They are the administrator's, as the key file is: what a user of
//! the host could change is refused, for nobody else decides who may knock, and root parses nobody else's text.

use postern_proto::IdentityKey;
use postern_proto::keyfile::ClientEntry;

use super::{ConfigError, Exposure, read_safe};
use crate::front::gate::Authorized;

/// Reads them all. A line that is not taken, and a file of which none is, are worth a remark: emptying the file is a way to
/// keep a client out.
///
/// # Errors
/// [`ConfigError`] for the first file that cannot be read, or that others may change.
pub(super) fn read(clients: &[ClientEntry]) -> Result<(Authorized, Vec<String>), ConfigError> {
    let (mut authorized, mut remarks) = (Authorized::new(), Vec::new());
    for client in clients {
        let Some(path) = &client.authorized_keys else { continue };
        let (keys, left_out) = IdentityKey::authorized(&read_safe(path, Exposure::NotWritable)?);
        let (name, path) = (&client.name, path.display());
        if left_out > 0 {
            remarks.push(format!(
                "client {name}: {left_out} lines of {path} are left out: only Ed25519 keys sign knocks, without options that \
                 limit them (from, expiry-time, verify-required, cert-authority), and {} at the most",
                postern_proto::identity::MAX_IDENTITIES
            ));
        }
        if keys.is_empty() {
            remarks.push(format!("client {name} cannot knock: {path} has no key that can sign"));
        }
        authorized.insert(client.id, keys);
    }
    Ok((authorized, remarks))
}
