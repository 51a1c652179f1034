//! `posternd check`: reads everything, touches nothing, says what `run` would do.

use anyhow::bail;

use super::ports;
use super::print::{count, say};
use crate::config::{Config, Files};
use crate::front::capture::Capture;
use crate::front::store::{self, Condition};
use crate::process::event_loop;
use crate::warden::firewall::Firewall;
use crate::warden::process::Reach;

pub(crate) fn run(files: &Files) -> anyhow::Result<()> {
    let config = Config::read_all(files)?;
    for file in files.there() {
        say!("{}: reads well", file.display())?;
    }
    if config.keys.exists() {
        say!("{}: reads well, {}", config.keys.display(), count(config.clients.len() as u64, "client"))?;
    }
    for (name, service) in &config.services {
        let ports: Vec<_> = service.ports.iter().map(ToString::to_string).collect();
        let (window, most) = (service.window, service.max_window);
        let what = if ports.is_empty() { "commands".to_owned() } else { ports.join(", ") };
        say!("service {name}: {what} open for {window} a knock, {most} at the most")?;
    }
    for (name, sequence) in &config.sequences {
        say!("sequence {name}: {sequence}")?;
        if sequence.opens_to_a_scan() {
            say!(
                "warning: sequence {name}: a scan of all ports, one after another, opens it; put its ports in another order"
            )?;
        }
    }
    for remark in &config.remarks {
        say!("warning: {remark}")?;
    }
    let Reach { backend, families, .. } = config.reach();
    let firewall = Firewall::new(backend, &families);
    say!("rules that `posternd run` puts up (sessions that stand then are let through as well):")?;
    for rule in firewall.describe(&config.guard(None)) {
        say!("  {rule}")?;
    }
    event_loop(look(&config, &firewall))
}

/// Looks at what only the running system can tell.
async fn look(config: &Config, firewall: &Firewall) -> anyhow::Result<()> {
    let mut problems = 0;
    let mut problem = |text: String| {
        problems += 1;
        say!("problem: {text}")
    };
    if let Err(error) = config.identity() {
        problem(error.to_string())?;
    }
    if let Err(error) = config.admin_group() {
        problem(error.to_string())?;
    }
    for interface in &config.gate.interfaces {
        match Capture::open(interface, &config.sought()) {
            Ok(_) => say!("interface {interface}: can be watched")?,
            Err(error) if error.may_pass() => say!("warning: {error}; the gate waits for it")?,
            Err(error) => problem(error.to_string())?,
        }
    }
    warn_of_listeners(config)?;
    let folder = config.store();
    let file = store::path_in(&folder).display().to_string();
    match store::examine(&folder) {
        Ok(Condition::Sound { knocks }) => say!("{file}: reads well, {knocks} knocks remembered")?,
        Ok(Condition::InUse) => say!("{file}: in use by a running gate")?,
        Ok(Condition::Missing) => say!("{file}: not there; a new one begins with the gate")?,
        Err(error) => problem(error.to_string())?,
    }
    match firewall.is_guarded().await {
        Ok(true) => say!("firewall: the guard is up")?,
        Ok(false) => say!("firewall: the guard is not up")?,
        Err(error) => problem(error.to_string())?,
    }
    for remark in firewall.neighbours(&config.guard(None)).await {
        say!("{remark}")?;
    }
    if problems > 0 {
        bail!("{problems} problem(s): the gate would not start");
    }
    Ok(())
}

/// Says what listens where rolling sequences take their ports from.
fn warn_of_listeners(config: &Config) -> anyhow::Result<()> {
    for (name, sequence) in &config.sequences {
        let Some(range) = sequence.range() else { continue };
        match ports::heard_in(range) {
            Ok(heard) if heard.is_empty() => {}
            Ok(heard) => {
                let heard: Vec<_> = heard.iter().map(ToString::to_string).collect();
                say!(
                    "warning: sequence {name}: something listens on {}, in its range {range}: whoever goes there spoils \
                     what he has begun of the sequence; choose another range",
                    heard.join(", ")
                )?;
            }
            Err(error) => {
                say!("warning: sequence {name}: cannot tell what listens in its range: {error:#}")?;
            }
        }
    }
    Ok(())
}
