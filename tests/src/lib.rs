//! The harness of the end-to-end tests: real kernels' firewalls, real sockets, the real programs.
//!
//! Every test builds its own small world out of network namespaces, and takes it down again however it ends. Nothing
//! leaves those namespaces, and no name, port or file is shared, so any number of tests run side by side.
//!
//! ```text
//!   alice ────┐                         posternd, sshd, echo
//!             ├── switch (a bridge) ──── gate
//!   mallory ──┘                         tcpdump at its one link
//! ```
//!
//! The rooms: [`wait`] (polling with a deadline), [`seed`] (chance that can be repeated), [`process`] and [`programs`]
//! (what runs), [`packages`] (what runs and is never installed), [`netns`] (where it runs), [`disk`] (where it remembers,
//! until the power is cut), [`broken_disk`] (where it cannot), [`probe`] (what a stranger sees), [`capture`] (what was on
//! the wire), [`knocks`] (knocks no client would send), [`packets`] (packets no socket would), [`flood`] (more than anybody
//! would send), [`gate`] and [`sshd`] (what is under test, and what it guards), [`home`] and [`ssh_agent`] (whose it is that goes
//! there, and what keys he has), [`knockd`] (what was there before it),
//! [`held`], [`debugger`] and [`orders`] (what a process holds, and what it can still do and send when somebody has taken
//! it over).

#![forbid(unsafe_code)]

pub mod broken_disk;
pub mod capture;
pub mod debugger;
pub mod disk;
pub mod flood;
pub mod gate;
pub mod held;
pub mod home;
pub mod knockd;
pub mod knocks;
pub mod nat;
pub mod netns;
pub mod orders;
pub mod packages;
pub mod packets;
pub mod probe;
pub mod process;
pub mod programs;
pub mod seed;
pub mod ssh_agent;
pub mod sshd;
pub mod wait;
