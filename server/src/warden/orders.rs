//! What the front orders: checked against the roll, and carried out.

use std::collections::HashSet;
use std::fmt;
use std::mem::take;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::slice;
use std::time::{Duration, Instant};

use postern_proto::{ClientId, ServiceName, Window};
use tracing::{debug, error, info};

use super::ledger::{Lease, LeaseKey, Plan};
use super::refusal::OrderRefusal;
use super::{Closing, Warden};
use crate::clock::{BootTime, Now};
use crate::errand::Errand;
use crate::order::{Order, Orders};

/// For so long those are tried one by one whom the firewall did not take together: whoever waits for the warden, a reload
/// above all, does not wait for a firewall that is stuck.
const SINGLY: Duration = Duration::from_secs(10);

/// What an order asks for, service by service.
struct Asked<'a> {
    client: ClientId,
    service: &'a ServiceName,
    window: Window,
    source: IpAddr,
    from_port: Option<NonZeroU16>,
    decided: BootTime,
}

/// A lease that is to go into the kernel, and the one that it takes the place of.
struct Granting {
    lease: Lease,
    replaces: Option<Lease>,
}

impl Warden {
    /// Does what is ordered, or refuses it: whom it lets in, it lets in together.
    pub(super) async fn carry_out(&mut self, Orders(orders): Orders) {
        if orders.len() > Orders::AT_ONCE {
            return self.refuse(OrderRefusal::Malformed, &"more orders than a message has");
        }
        let mut together = Vec::new();
        for order in orders {
            self.take_up(order, &mut together).await;
        }
        self.grant(together).await;
    }

    async fn take_up(&mut self, order: Order, together: &mut Vec<Granting>) {
        if let Some((client, services)) = order.asks() {
            if !self.roll.members.contains_key(&client) {
                return self.refuse(OrderRefusal::UnknownClient, &client);
            }
            if let Some(fault) = fault_of(&services) {
                return self.refuse(OrderRefusal::Malformed, &fault);
            }
        }
        match order {
            Order::Open { client, services, source, from_port, decided } => {
                for (service, window) in services {
                    let asked = Asked { client, service: &service, window, source, from_port, decided };
                    if let Err(reason) = self.open(&asked, together).await {
                        self.refuse(reason, &format_args!("{client} {service} for {window} from {source}"));
                    }
                }
            }
            Order::Close { client, services, .. } if !self.are_in_time(client, services.len()) => {
                self.refuse(OrderRefusal::TooFast, &client);
            }
            Order::Close { client, services, source } => {
                self.grant(take(together)).await;
                self.close(client, &services, source);
            }
            Order::Note(mut note) => {
                // They are shown to people, at their terminals.
                let is_name = |name: &String| name.bytes().all(|byte| byte.is_ascii_graphic());
                note.interfaces.retain(is_name);
                self.note = note;
            }
        }
    }

    /// Whether so many services more of a client are no more than it may order by now.
    fn are_in_time(&mut self, client: ClientId, services: usize) -> bool {
        let leases = self.roll.members.get(&client).map_or(0, |member| member.max_leases);
        let now = Now::read().boot;
        (0..services).all(|_| self.pace.allows(client, leases, now))
    }

    pub(super) fn refuse(&mut self, reason: OrderRefusal, order: &dyn fmt::Display) {
        self.refusals.refuse(reason, Now::read().boot, order);
    }

    /// Lets somebody in, or adds the lease to those that go into the kernel together.
    async fn open(&mut self, asked: &Asked<'_>, together: &mut Vec<Granting>) -> Result<(), OrderRefusal> {
        let &Asked { client, service, window, source, from_port, decided } = asked;
        let now = Now::read();
        // Each service of an order counts: each can be a rule.
        if !self.are_in_time(client, 1) {
            return Err(OrderRefusal::TooFast);
        }
        let (member, entry) = self.roll.entitled(client, service, window, source, now.wall)?;
        let (name, max_leases, ports) = (member.name.clone(), member.max_leases, entry.ports.clone());
        let left = window.duration().saturating_sub(now.boot.since(decided));
        if left.is_zero() {
            return Err(OrderRefusal::Late);
        }
        let key = LeaseKey { client: name, service: service.clone(), source, from_port };
        // A renewal goes by the lease that it renews.
        if together.iter().any(|granting| granting.lease.key == key) {
            self.grant(take(together)).await;
        }
        let (lease, replaces) = match self.ledger.plan(now, key, &ports, left) {
            Plan::Unchanged => {
                debug!(%client, %service, %source, "granted already for as long");
                return Ok(());
            }
            Plan::Extend(lease) => {
                self.granted(lease);
                return Ok(());
            }
            Plan::Grant { lease, replaces } => (lease, replaces),
        };
        let new = together.iter().filter(|granting| granting.replaces.is_none());
        let coming = new.map(|granting| &granting.lease.key.client);
        if replaces.is_none() && !self.ledger.has_room_for(&lease.key.client, max_leases, coming) {
            return Err(OrderRefusal::TooManyLeases);
        }
        together.push(Granting { lease, replaces });
        Ok(())
    }

    /// Lets those in who come together, one address family after the other: iptables takes no more than one at a time.
    async fn grant(&mut self, together: Vec<Granting>) {
        let is_ipv4 = |granting: &Granting| granting.lease.key.source.is_ipv4();
        let (ipv4, ipv6): (Vec<_>, Vec<_>) = together.into_iter().partition(is_ipv4);
        self.grant_family(ipv4).await;
        self.grant_family(ipv6).await;
    }

    /// Lets in who comes from addresses of one family. Where the firewall fails, each is tried for himself: one that it does
    /// not take keeps no other out.
    async fn grant_family(&mut self, together: Vec<Granting>) {
        let begun = Instant::now();
        let leases: Vec<Lease> = together.iter().map(|granting| granting.lease.clone()).collect();
        let all_are_in = leases.len() > 1 && self.let_in(&leases).await.is_ok();
        for Granting { lease, replaces } in together {
            let let_in = if all_are_in {
                Ok(())
            } else if begun.elapsed() > SINGLY {
                Err("it was too slow with others that came at once".to_owned())
            } else {
                self.let_in(slice::from_ref(&lease)).await.map_err(|error| error.to_string())
            };
            if let Err(error) = let_in {
                let LeaseKey { client, service, source, .. } = &lease.key;
                error!(%client, %service, %source, %error, "not granted: the firewall failed");
                self.later(Closing::Lease(lease));
                continue;
            }
            self.granted(lease);
            if let Some(old) = replaces {
                self.later(Closing::Lease(old));
            }
        }
    }

    fn granted(&mut self, lease: Lease) {
        let Lease { key: LeaseKey { client, service, source, from_port }, id, until, .. } = &lease;
        let from_port = from_port.map(NonZeroU16::get);
        info!(%client, %service, %source, from_port, %until, lease = %id, "granted");
        if self.roll.services.get(service).is_some_and(|service| service.has_commands) {
            let (lasts, until) = (lease.ends.since(Now::read().boot), *until);
            self.ask_runner(Errand::Open { lease: lease.key.clone(), until, lasts });
        }
        self.ledger.enter(lease);
    }

    /// The runner may be busy or gone, and nobody is kept waiting for it.
    pub(super) fn ask_runner(&self, errand: Errand) {
        let Some(runner) = &self.runner else { return };
        if let Err(error) = runner.try_send(errand) {
            error!(%error, "the runner does not take errands: on-open is not run, on-close at the lease's end");
        }
    }

    fn close(&mut self, client: ClientId, services: &[ServiceName], source: IpAddr) {
        let Some(name) = self.roll.members.get(&client).map(|member| member.name.clone()) else { return };
        for service in services {
            for lease in self.ledger.close(&name, service, source) {
                self.end(lease, "closed");
            }
        }
    }
}

/// What no order has: without services, it would cost nothing of what a client may order; with one of them twice, as much
/// as hundreds.
fn fault_of(services: &[&ServiceName]) -> Option<&'static str> {
    let mut named = HashSet::new();
    if services.is_empty() {
        Some("it names no service")
    } else if services.iter().any(|name| !named.insert(name)) {
        Some("it names a service twice")
    } else {
        None
    }
}
