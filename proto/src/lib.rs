//! The knock: what a Postern client sends, and how a gate reads it.
//!
//! Normative text: `SPEC.md` beside this crate; the code cites its sections. Nothing here opens a socket or a
//! file, reads a clock or draws randomness: `now`, nonces and bytes come in as arguments.
//!
//! ```text
//!  client                                              gate
//!  payload ──▶ knock::seal ──▶ 256 bytes ~~~~▶ Datagram ──unveil──▶ HintTable ──▶ knock::open ──▶ Authentic
//!              (keys, nonce)                   (datagram)           (hints)       (keys, payload)
//!  identity::to_sign ──▶ proof ~~~~~~~~~~~ in the payload ~~~~~~~~~~~~~~~~~~~~~~~~~▶ Authentic::is_signed_by
//!  answer::open ◀── 256 bytes ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~ answer::seal, once it is recorded
//! ```
//!
//! Clients that have no more than a way to touch ports come by [`sequence`] instead.
//!
//! Beside the packet's way stand the two texts that people carry: [`keyfile`] on the gate, [`profile`] with
//! the client.

#![forbid(unsafe_code)]

pub mod answer;
mod authorized_keys;
pub mod datagram;
pub mod hints;
pub mod identity;
pub mod keyfile;
pub mod keys;
pub mod knock;
pub mod names;
pub mod payload;
pub mod port;
pub mod profile;
pub mod refusal;
pub mod sequence;
pub mod text;
pub mod time;

pub use answer::{ANSWER_LEN, Answer, NoAnswer, Outcome};
pub use datagram::{Datagram, KNOCK_LEN, UsedNonce};
pub use hints::{HintTable, Hinted};
pub use identity::{IdentityError, IdentityKey, to_sign};
pub use keyfile::{ClientEntry, KeyFile};
pub use keys::{
    AnswerKey, ClientId, ClientKeys, ClientSecret, GateId, GateKeys, Hint, HintKey, Nonce, SealKey,
    SequenceKey,
};
pub use knock::{Authentic, open, seal};
pub use names::{ClientName, GateName, NameError, SequenceName, ServiceName};
pub use payload::{Payload, Proof, Request, Services, Signature, Source};
pub use port::{Port, Protocol};
pub use profile::Profile;
pub use refusal::Refusal;
pub use text::TextError;
pub use time::{Epoch, Tolerance, WallTime, Window};
