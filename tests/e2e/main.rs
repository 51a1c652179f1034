//! The promises, end to end: every test shows first and last that a fresh knock opens, and in between that one
//! promise is kept. They need root, for network namespaces; `bash tests/run` installs the rest.

#![forbid(unsafe_code)]

mod administration;
mod answers;
mod asking;
mod automation;
mod automation_examples;
mod bad_input;
mod bench;
mod client;
mod clock_steps;
mod commands;
mod crowd;
mod doctor;
mod documents;
mod doors;
mod enrolment;
mod exact;
mod flood;
mod guard;
mod healing;
mod identity;
mod interfaces;
mod kernel_filter;
mod kill_rounds;
mod killed;
mod knockd_conf;
mod knockd_table;
mod landlock;
mod last_use;
mod many_clients;
mod neighbours;
mod nftables;
mod one_time;
mod power_cut;
mod recent;
mod reload;
mod replay;
mod rolling;
mod rotation;
mod sequences;
mod sequences_client;
mod silence;
mod ssh_tools;
mod state;
mod supervision;
mod systemd;
mod takeover;
mod theft;
mod world;
