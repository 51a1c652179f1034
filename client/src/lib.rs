//! The client of Postern: knocks at a gate, and carries a connection through the door that opens.
//!
//! ```text
//!            command: knock, close, proxy, doctor, sequence
//!               │
//!  cli ──▶ config ──▶ resolve ──▶ source ──▶ knock ~~~UDP~~~▶ gate
//!  what    Profile    addresses   whom to    seal, send         │ opens
//!  to do   (secret)      │        let in        ▲               │
//!               ▲        │        clock      rounds             │
//!               │        │        identity   again and again    │
//!               │        │        date, sign    ▼               │
//!               │        │                    reply ◀~~~UDP~~~~─┤
//!               │        │                    open, decide      │
//!               │        └────▶ sequence ~~SYN, UDP~▶ knockd ~──┤
//!               │        (course)  touch ports                  ▼
//!               │                            connect ───TCP───▶ service
//!               │                            (exact: from one port)
//!               │                               │
//!            command: import, gates             └──▶ splice ◀──▶ stdin, stdout
//!               │     ssh-config ──▶ ssh_config: what ssh reads
//!               └──▶ enrolment: what age or a QR code made of a profile
//! ```
//!
//! It needs no privileges, and with a profile in the environment not even a home directory. Where a gate does not
//! answer, what this crate reports of a knock is that it was sent, and of a door that a TCP connection went through it.
//! The rooms on the way (`resolve` to `splice`) know nothing of the configuration; `gate` and the commands join them.
//! Called as `knock`, the program is knockd's client (`drop_in`).
//!
//! # As a library
//!
//! A program knocks by itself with a [`Gate`], on a runtime of tokio:
//!
//! ```no_run
//! use postern_client::{Error, Gate, Options};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Error> {
//!     // The gate "bastion" of ~/.config/postern/config.toml.
//!     let gate = Gate::load(&"bastion".parse().expect("it is a name"), None)?;
//!     let ssh = ["ssh".parse().expect("it is a name")];
//!     match gate.knock(&ssh, &Options::default()).await {
//!         Ok(Some(reply)) => println!("open to {} until {:?}", reply.let_in(), reply.until()),
//!         Ok(None) => println!("sent: this gate does not answer"),
//!         Err(Error::Refused(refused)) => println!("refused: {}", refused.refusal.meaning()),
//!         Err(error) => return Err(error),
//!     }
//!     // ... connect ...
//!     gate.close(&ssh, &Options::default()).await?;
//!     Ok(())
//! }
//! ```

#![forbid(unsafe_code)]

// The way of a knock, in its order (rustfmt sorts modules that stand together).
mod cli;

mod config;

mod enrolment;

mod resolve;

mod source;

mod clock;

mod identity;

mod knock;

mod reply;

mod rounds;

mod course;

mod sequence;

mod connect;

mod exact;

mod splice;

// What ssh reads, and how files are written.
mod ssh_config;

mod file;

// Beside the way: what only a diagnosis asks, where people type passphrases, and what only Linux tells.
mod ntp;

mod terminal;

mod system;

// What joins these rooms, and what comes out of them.
mod gate;

mod command;

mod error;
mod refused;
mod report;

// The program under the name of knockd's client.
mod drop_in;

pub use cli::{Cli, NotRun};
pub use clock::ClockOffset;
pub use command::run;
pub use drop_in::{is_knock, run_as_knock};
pub use error::{Advice, Error};
pub use gate::{Gate, Options};
pub use identity::{AgentError, FileError, SigningError};
pub use postern_proto as proto;
pub use refused::Refused;
pub use reply::Reply;
pub use report::{
    AnswerReport, CloseReport, DoctorReport, FailedReport, Finding, GateReport, IdentityReport, KnockReport,
    KnockedReport, Level, OpenReport, PageReport, Report, SequenceReport, SshConfigReport, finish,
};
pub use resolve::Family;
pub use source::{SourceChoice, SourceError};
