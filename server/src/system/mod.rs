//! The one module with unsafe code: calls to the kernel that no safe crate has. Each block says why it holds.

#![expect(unsafe_code, reason = "bpf(2) and getsockopt of ip_tables; the rest of the workspace is without")]

pub(crate) mod bpf;
mod xtables;

pub(crate) use xtables::{XtablesLevel, XtablesQuery, ask_xtables};
