//! What the front orders: checked against the roll, and carried out.

use std::collections::{BTreeMap, HashSet};
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
use crate::order::{Order, Orders, SealedAnswer};

/// For so long those are tried one by one whom the firewall did not take together: whoever waits for the warden, a reload
/// above all, does not wait for a firewall that is stuck.
const SINGLY: Duration = Duration::from_secs(10);

/// What an order asks for, service by service.
struct Asked<'a> {
    /// Its place in the message.
    order: usize,
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
    /// The order in its message that asks for it.
    order: usize,
}

/// The orders of one message, as far as they are not done.
#[derive(Default)]
struct Batch {
    together: Vec<Granting>,
    /// To be sent where nothing of the order failed, by the order's place in the message.
    answers: BTreeMap<usize, SealedAnswer>,
}

impl Warden {
    /// Does what is ordered, or refuses it: whom it lets in, it lets in together.
    pub(super) async fn carry_out(&mut self, Orders(orders): Orders) {
        if orders.len() > Orders::AT_ONCE {
            return self.refuse(OrderRefusal::Malformed, &"more orders than a message has");
        }
        let mut batch = Batch::default();
        for (number, order) in orders.into_iter().enumerate() {
            self.take_up(number, order, &mut batch).await;
        }
        self.grant(&mut batch).await;
        batch.answers.values().for_each(|answer| self.responder.send(answer));
    }

    async fn take_up(&mut self, number: usize, order: Order, batch: &mut Batch) {
        if let Some((client, services)) = order.asks() {
            if !self.roll.members.contains_key(&client) {
                return self.refuse(OrderRefusal::UnknownClient, &client);
            }
            if let Some(fault) = fault_of(&services) {
                return self.refuse(OrderRefusal::Malformed, &fault);
            }
        }
        match order {
            Order::Open { client, services, source, from_port, decided, answer } => {
                batch.answers.extend(answer.map(|answer| (number, answer)));
                for (service, window) in services {
                    let asked = Asked {
                        order: number,
                        client,
                        service: &service,
                        window,
                        source,
                        from_port,
                        decided,
                    };
                    if let Err(reason) = self.open(&asked, batch).await {
                        batch.answers.remove(&number);
                        self.refuse(reason, &format_args!("{client} {service} for {window} from {source}"));
                    }
                }
            }
            Order::Close { client, services, .. }
                if !self.is_in_time(client) || !self.are_leases_in_time(client, services.len()) =>
            {
                self.refuse(OrderRefusal::TooFast, &client);
            }
            Order::Close { client, services, source, answer } => {
                self.grant(batch).await;
                self.close(client, &services, source);
                if let Some(answer) = answer {
                    // Behind the leases that it closes.
                    drop(self.closing.send(Closing::Answer(answer)));
                }
            }
            Order::Answer { client, .. } if !self.roll.members.contains_key(&client) => {
                self.refuse(OrderRefusal::UnknownClient, &client);
            }
            Order::Answer { client, .. } if !self.is_in_time(client) => {
                self.refuse(OrderRefusal::TooFast, &client);
            }
            Order::Answer { answer, .. } => drop(batch.answers.insert(number, answer)),
            Order::Note(mut note) => {
                // They are shown to people, at their terminals.
                let is_name = |name: &String| name.bytes().all(|byte| byte.is_ascii_graphic());
                note.interfaces.retain(is_name);
                self.note = note;
            }
        }
    }

    /// Whether one more order of a client is no more than it may send by now.
    fn is_in_time(&mut self, client: ClientId) -> bool {
        let leases = self.roll.members.get(&client).map_or(0, |member| member.max_leases);
        self.orders_pace.allows(client, leases, Now::read().boot)
    }

    /// Whether so many leases more of a client, to be opened or closed, are no more than it may order by now.
    fn are_leases_in_time(&mut self, client: ClientId, services: usize) -> bool {
        let leases = self.roll.members.get(&client).map_or(0, |member| member.max_leases);
        let now = Now::read().boot;
        (0..services).all(|_| self.leases_pace.allows(client, leases, now))
    }

    pub(super) fn refuse(&mut self, reason: OrderRefusal, order: &dyn fmt::Display) {
        self.refusals.refuse(reason, Now::read().boot, order);
    }

    /// Lets somebody in, or adds the lease to those that go into the kernel together.
    async fn open(&mut self, asked: &Asked<'_>, batch: &mut Batch) -> Result<(), OrderRefusal> {
        let &Asked { order, client, service, window, source, from_port, decided } = asked;
        let now = Now::read();
        if !self.is_in_time(client) {
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
        if batch.together.iter().any(|granting| granting.lease.key == key) {
            self.grant(batch).await;
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
        // Each service of an order counts: each can be a rule.
        if !self.are_leases_in_time(client, 1) {
            return Err(OrderRefusal::TooFast);
        }
        let new = batch.together.iter().filter(|granting| granting.replaces.is_none());
        let coming = new.map(|granting| &granting.lease.key.client);
        if replaces.is_none() && !self.ledger.has_room_for(&lease.key.client, max_leases, coming) {
            return Err(OrderRefusal::TooManyLeases);
        }
        batch.together.push(Granting { lease, replaces, order });
        Ok(())
    }

    /// Lets those in who come together, one address family after the other: iptables takes no more than one at a time.
    async fn grant(&mut self, batch: &mut Batch) {
        let is_ipv4 = |granting: &Granting| granting.lease.key.source.is_ipv4();
        let (ipv4, ipv6): (Vec<_>, Vec<_>) = take(&mut batch.together).into_iter().partition(is_ipv4);
        for together in [ipv4, ipv6] {
            for failed in self.grant_family(together).await {
                batch.answers.remove(&failed);
            }
        }
    }

    /// Lets in who comes from addresses of one family. Where the firewall fails, each is tried for himself: one that it does
    /// not take keeps no other out. Gives the orders that failed.
    async fn grant_family(&mut self, together: Vec<Granting>) -> Vec<usize> {
        let (begun, mut failed) = (Instant::now(), Vec::new());
        let leases: Vec<Lease> = together.iter().map(|granting| granting.lease.clone()).collect();
        let all_are_in = leases.len() > 1 && self.let_in(&leases).await.is_ok();
        for Granting { lease, replaces, order } in together {
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
                failed.push(order);
                continue;
            }
            self.granted(lease);
            if let Some(old) = replaces {
                self.later(Closing::Lease(old));
            }
        }
        failed
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
