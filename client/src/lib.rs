//! The client of Postern: knocks at a gate, and carries a connection through the door that opens.
//!
//! ```text
//!            command: knock, proxy, sequence
//!               │
//!  cli ──▶ config ──▶ resolve ──▶ source ──▶ knock ~~~UDP~~~▶ gate
//!  what    Profile    addresses   whom to    seal, send         │ opens
//!  to do   (secret)      │        let in                        │
//!               ▲        └────▶ sequence ~~SYN, UDP~▶ knockd ~──┤
//!               │        (course)  touch ports                  ▼
//!               ▲                            connect ───TCP───▶ service
//!               │                               │
//!            command: import, gates             └──▶ splice ◀──▶ stdin, stdout
//!                     ssh-config ──▶ ssh_config: what ssh reads
//! ```
//!
//! It needs no privileges, and with a profile in the environment not even a home directory. A gate never answers:
//! what this crate reports of a knock is that it was sent, and of a door that a TCP connection went through it.
//! The rooms on the way (`resolve` to `splice`) know nothing of the configuration; the commands join them. Called as
//! `knock`, the program is knockd's client (`drop_in`).

#![forbid(unsafe_code)]

// The way of a knock, in its order (rustfmt sorts modules that stand together).
mod cli;

mod config;

mod resolve;

mod source;

mod knock;

mod course;

mod sequence;

mod connect;

mod splice;

// What ssh reads, and how files are written.
mod ssh_config;

mod file;

// What joins these rooms, and what comes out of them.
mod command;

mod error;
mod report;

// The program under the name of knockd's client.
mod drop_in;

pub use cli::{Cli, NotRun};
pub use command::run;
pub use drop_in::{is_knock, run_as_knock};
pub use error::{Advice, Error};
pub use report::{
    FailedReport, GateReport, KnockReport, KnockedReport, OpenReport, PageReport, Report, SequenceReport,
    SshConfigReport, finish,
};
