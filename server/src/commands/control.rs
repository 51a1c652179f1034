//! `posternd status`, `list`, `revoke` and `reload`: what an administrator asks of the running gate. Tables for people,
//! JSON for programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use postern_proto::Refusal;

use crate::admin::{Answer, LeaseRow, Request, Status, ask};
use crate::cli::Asking;
use crate::config::Config;

pub(crate) fn status(config: &Path, asking: &Asking) -> anyhow::Result<()> {
    match ask(&socket(config, asking), &Request::Status)? {
        Answer::Status(status) if asking.json => json(&status),
        Answer::Status(status) => {
            table(&status);
            Ok(())
        }
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
        Answer::Reloaded => {
            println!("reloaded");
            Ok(())
        }
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
        println!("{} revoked", count(leases.len(), "lease"));
    }
    let rows: Vec<_> = leases.iter().map(row).collect();
    print_table(["LEASE", "CLIENT", "SERVICE", "PORTS", "SOURCE", "LEFT"], &rows);
    Ok(())
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

fn table(status: &Status) {
    let Status { version, uptime_secs, watched, is_guarded, trial_until, leases, packets, orders_refused } =
        status;
    println!("posternd {version}, up {}", humantime::format_duration(Duration::from_secs(*uptime_secs)));
    let watched =
        if watched.is_empty() { "none: no interface is there".to_owned() } else { watched.join(", ") };
    println!("watching    {watched}");
    match trial_until {
        _ if !is_guarded => {
            println!("guard       NOT AS IT SHOULD BE: the log says why; tried again every second");
        }
        Some(until) => println!("guard       up, on trial until {until}"),
        None => println!("guard       up"),
    }
    println!("leases      {leases}");
    println!("datagrams   {} received, {} dropped by a full ring", packets.received, packets.dropped);
    println!("accepted    {}", packets.accepted);
    for reason in Refusal::ALL {
        if let Some(count) = packets.refused.get(reason) {
            println!("refused     {count} {reason}: {}", reason.meaning());
        }
    }
    if packets.refused_in_kernel > 0 {
        println!("kernel      refused {} of the unknown by itself", packets.refused_in_kernel);
    }
    for (reason, count) in orders_refused {
        println!("warden      refused {} of the front: {reason}", count_of(*count, "order"));
    }
}

/// Columns as wide as what stands in them; nothing at all where there are no rows.
pub(super) fn print_table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) {
    if rows.is_empty() {
        return;
    }
    let heads = heads.map(ToOwned::to_owned);
    let all: Vec<&[String; N]> = std::iter::once(&heads).chain(rows).collect();
    for row in &all {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = all.iter().map(|row| row[column].len()).max().unwrap_or_default();
            format!("{cell:width$}")
        });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn count(number: usize, noun: &str) -> String {
    count_of(number as u64, noun)
}

fn count_of(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

fn unexpected(answer: &Answer) -> anyhow::Result<()> {
    bail!("the gate answers something else ({answer:?}): is it of another version?")
}
