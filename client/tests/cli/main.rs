//! The binary from outside: real sockets on loopback, real files in a home of its own, no environment but what a test
//! gives.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

mod answered;
mod answers;
mod bad_input;
mod close;
mod doctor;
mod dry_run;
mod exact;
mod gate;
mod home;
mod identity;
mod import;
mod knock;
mod library;
mod manual;
mod origins;
mod portable;
mod proxy;
mod schema;
mod sequence;
mod ssh;
mod ssh_config;
mod transcript;
