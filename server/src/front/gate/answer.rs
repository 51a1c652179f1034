//! What a client is told of its knock (SPEC 9). It exists from the decision on, and leaves the gate only with a decision
//! that is recorded: nobody is answered for a knock that could be sent again.

use postern_proto::answer::{self, ANSWER_LEN, Answer};
use postern_proto::datagram::UsedNonce;
use postern_proto::{AnswerKey, ClientId, GateId, Nonce, WallTime, Window};

use super::{Gate, Outcome, Record, Way};

/// An answer, not sealed yet.
pub struct Reply {
    /// The way of the knock, which the answer goes back.
    pub way: Way,
    /// Who is answered.
    pub client: ClientId,
    gate: GateId,
    key: AnswerKey,
    knock: UsedNonce,
    answer: Answer,
}

impl Reply {
    /// The answer as it goes over the wire.
    #[must_use]
    pub fn seal(&self, nonce: Nonce) -> [u8; ANSWER_LEN] {
        answer::seal(&self.gate, &self.key, &self.knock, &self.answer, nonce)
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("way", &self.way).field("answer", &self.answer).finish_non_exhaustive()
    }
}

impl Gate {
    /// What the client of a knock is told once `outcome` is recorded, and has its effect.
    pub(super) fn reply(
        &self,
        now: WallTime,
        way: Way,
        client: usize,
        record: &Record,
        outcome: &Outcome,
    ) -> Reply {
        let (id, knock) = record.key;
        let key = self.clients[client].answer_key().clone();
        let answer = Answer { at: now, seen: way.from, outcome: told(outcome, now) };
        Reply { way, client: id, gate: self.keys.id().clone(), key, knock, answer }
    }
}

fn told(outcome: &Outcome, now: WallTime) -> answer::Outcome {
    match outcome {
        Outcome::Open(grant) => {
            let first = grant.services.iter().map(|(_, window)| *window).min();
            answer::Outcome::Opened {
                until: now.after(first.map_or_else(Default::default, Window::duration)),
            }
        }
        Outcome::Close(_) => answer::Outcome::Closed,
        Outcome::Heard => answer::Outcome::Heard,
        Outcome::Refused(refused) => answer::Outcome::Refused(refused.reason),
    }
}
