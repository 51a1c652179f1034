//! `posternd status`, `list`, `revoke` and `reload`: what an administrator asks of the running gate. Tables for people,
//! JSON for programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use postern_proto::Refusal;

use super::print::{self, count, say};
use crate::admin::{Answer, LeaseRow, Request, Status, ask};
use crate::cli::Asking;
use crate::config::Config;

pub(crate) fn status(config: &Path, asking: &Asking) -> anyhow::Result<()> {
    match ask(&socket(config, asking), &Request::Status)? {
        Answer::Status(status) if asking.json => json(&status),
        Answer::Status(status) => table(&status),
        other => unexpected(&other),
    }
}

pub(crate) fn list(config: &Path, asking: &Asking) -> anyhow::Result<()> {
    leases(config, asking, &Request::List)
}

pub(crate) fn revoke(config: &Path, which: &str, asking: &Asking) -> anyhow::Result<()> {
    leases(config, asking, &Request::Revoke(which.to_owned()))
}

pub(crate) fn reload(config: &Path, asking: &Asking) -> anyhow::Result<()> {
    match ask(&socket(config, asking), &Request::Reload)? {
        Answer::Reloaded if asking.json => json(&serde_json::json!({ "reloaded": true })),
        Answer::Reloaded => say!("reloaded"),
        other => unexpected(&other),
    }
}

/// Where the gate answers: the group of [admin] need not be able to read the configuration, which then says nothing.
fn socket(config: &Path, asking: &Asking) -> PathBuf {
    asking.socket.clone().unwrap_or_else(|| Config::admin_socket(config))
}

fn leases(config: &Path, asking: &Asking, request: &Request) -> anyhow::Result<()> {
    let Answer::Leases(mut leases) = ask(&socket(config, asking), request)? else {
        bail!("the gate answers something else: is it of another version?");
    };
    leases.sort_by(|a, b| (a.until, &a.lease).cmp(&(b.until, &b.lease)));
    if asking.json {
        return json(&leases);
    }
    if let Request::Revoke(_) = request {
        say!("{} revoked", count(leases.len() as u64, "lease"))?;
    }
    let rows: Vec<_> = leases.iter().map(row).collect();
    print::table(["LEASE", "CLIENT", "SERVICE", "PORTS", "SOURCE", "LEFT"], &rows)
}

fn row(lease: &LeaseRow) -> [String; 6] {
    let ports: Vec<_> = lease.ports.iter().map(ToString::to_string).collect();
    let from_port = lease.from_port.map(|port| format!(" port {port}")).unwrap_or_default();
    [
        lease.lease.clone(),
        lease.client.to_string(),
        lease.service.to_string(),
        ports.join(","),
        format!("{}{from_port}", lease.source),
        humantime::format_duration(Duration::from_secs(lease.left_secs)).to_string(),
    ]
}

fn table(status: &Status) -> anyhow::Result<()> {
    let Status { version, uptime_secs, watched, is_guarded, trial_until, leases, packets, orders_refused } =
        status;
    say!("posternd {version}, up {}", humantime::format_duration(Duration::from_secs(*uptime_secs)))?;
    let watched =
        if watched.is_empty() { "none: no interface is there".to_owned() } else { watched.join(", ") };
    say!("watching    {watched}")?;
    match trial_until {
        _ if !is_guarded => {
            say!("guard       NOT AS IT SHOULD BE: the log says why; tried again every second")?;
        }
        Some(until) => say!("guard       up, on trial until {until}")?,
        None => say!("guard       up")?,
    }
    say!("leases      {leases}")?;
    say!("datagrams   {} received, {} dropped by a full ring", packets.received, packets.dropped)?;
    say!("accepted    {}", packets.accepted)?;
    for reason in Refusal::ALL {
        if let Some(count) = packets.refused.get(reason) {
            say!("refused     {count} {reason}: {}", reason.meaning())?;
        }
    }
    if packets.refused_in_kernel > 0 {
        say!("kernel      refused {} of the unknown by itself", packets.refused_in_kernel)?;
    }
    for (reason, count) in orders_refused {
        say!("warden      refused {} of the front: {reason}", print::count(*count, "order"))?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string(value)?)
}

fn unexpected(answer: &Answer) -> anyhow::Result<()> {
    bail!("the gate answers something else ({answer:?}): is it of another version?")
}
