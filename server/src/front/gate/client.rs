//! A client as the gate holds it: its keys and its policy, ready to use.

use postern_proto::keyfile::ClientEntry;
use postern_proto::{AnswerKey, ClientId, ClientKeys, ClientName, Epoch, GateId, HintKey, Hinted, SealKey};

use super::policy::Policy;

/// One client of the gate.
pub struct Client {
    /// Its name, for logs.
    pub name: ClientName,
    /// Its id, for replay records and grants.
    pub id: ClientId,
    keys: ClientKeys,
    /// What it may ask for.
    pub policy: Policy,
}

impl Client {
    /// Derives the keys of an entry of the key file.
    #[must_use]
    pub fn new(gate: &GateId, entry: &ClientEntry) -> Self {
        Self {
            name: entry.name.clone(),
            id: entry.id,
            keys: ClientKeys::derive(gate, &entry.secret),
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
}

impl Hinted for Client {
    fn hint_key(&self, epoch: Epoch) -> Option<&HintKey> {
        self.policy.may_knock_in(epoch).then_some(&self.keys.hint)
    }
}
