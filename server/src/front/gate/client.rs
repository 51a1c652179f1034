//! A client as the gate holds it: its keys and its policy, ready to use.

use std::collections::HashMap;

use postern_proto::keyfile::ClientEntry;
use postern_proto::{
    AnswerKey, ClientId, ClientKeys, ClientName, ClientSecret, Epoch, GateId, HintKey, Hinted, IdentityKey,
    SealKey, Tolerance, WallTime,
};

use super::policy::Policy;

/// The keys in the files that clients' entries point to.
pub type Authorized = HashMap<ClientId, Vec<IdentityKey>>;

/// One client of the gate, by one of its secrets: while its previous one is good as well, the client is there twice.
pub struct Client {
    /// Its name, for logs.
    pub name: ClientName,
    /// Its id, for replay records and grants.
    pub id: ClientId,
    keys: ClientKeys,
    /// One of these has to sign its knocks. With none at all it need not sign; with none among these it cannot knock.
    identities: Option<Vec<IdentityKey>>,
    /// The instant from which on its secret is nobody's any more.
    until: Option<WallTime>,
    /// What it may ask for.
    pub policy: Policy,
}

impl Client {
    /// The clients of a key file's entries, with the keys that stand in other files.
    #[must_use]
    pub fn all(gate: &GateId, entries: &[ClientEntry], authorized: &Authorized) -> Vec<Self> {
        let by_secrets = |entry: &ClientEntry| {
            let previous = entry.previous().map(|(secret, until)| (secret.clone(), Some(until)));
            [Some((entry.secret.clone(), None)), previous].into_iter().flatten()
        };
        let pairs = entries.iter().flat_map(|entry| by_secrets(entry).map(move |by| (entry, by)));
        pairs.map(|(entry, (secret, until))| Self::by(gate, entry, &secret, until, authorized)).collect()
    }

    fn by(
        gate: &GateId,
        entry: &ClientEntry,
        secret: &ClientSecret,
        until: Option<WallTime>,
        authorized: &Authorized,
    ) -> Self {
        let from_file = || authorized.get(&entry.id).cloned().unwrap_or_default();
        let identities = match (&entry.identity, &entry.authorized_keys) {
            (None, None) => None,
            (Some(key), _) => Some(vec![key.clone()]),
            (None, Some(_)) => Some(from_file()),
        };
        Self {
            name: entry.name.clone(),
            id: entry.id,
            keys: ClientKeys::derive(gate, secret),
            identities,
            until,
            policy: Policy::of(entry),
        }
    }

    pub(crate) const fn seal_key(&self) -> &SealKey {
        &self.keys.seal
    }

    pub(super) const fn answer_key(&self) -> &AnswerKey {
        &self.keys.answer
    }

    /// Its key for hints, whatever its policy says.
    pub(crate) const fn any_hint_key(&self) -> &HintKey {
        &self.keys.hint
    }

    /// The keys of which one has to sign, if it has to.
    pub(super) fn identities(&self) -> Option<&[IdentityKey]> {
        self.identities.as_deref()
    }

    /// Whether its secret is good at that time.
    pub(super) fn is_current(&self, now: WallTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Hinted for Client {
    fn hint_key(&self, epoch: Epoch) -> Option<&HintKey> {
        // By the gate's clock it is good for as long as said: the client's own may be ahead.
        let ends = self.until.is_some_and(|until| until.after(Tolerance::LONGEST) <= epoch.start());
        (!ends && self.policy.may_knock_in(epoch)).then_some(&self.keys.hint)
    }
}
