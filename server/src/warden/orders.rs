//! What the front orders: checked against the roll, and carried out.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use postern_proto::{ClientId, ServiceName, Window};
use tracing::{debug, error, info};

use super::ledger::{Lease, LeaseKey, Plan};
use super::refusal::OrderRefusal;
use super::{Closing, Warden};
use crate::clock::{BootTime, Now};
use crate::errand::Errand;
use crate::order::Order;

impl Warden {
    /// Does what is ordered, or refuses it.
    pub(super) async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Open { client, .. } | Order::Close { client, .. }
                if !self.roll.members.contains_key(&client) =>
            {
                self.refuse(OrderRefusal::UnknownClient, &client);
            }
            // No knock names a service twice: it would make an order cost as much as hundreds.
            Order::Open { services, .. } if names_twice(services.iter().map(|(name, _)| name)) => {
                self.refuse(OrderRefusal::Malformed, &"it names a service twice");
            }
            Order::Open { client, services, source, from_port, decided } => {
                for (service, window) in services {
                    let result = self.open(client, &service, window, source, from_port, decided).await;
                    if let Err(reason) = result {
                        self.refuse(reason, &format_args!("{client} {service} for {window} from {source}"));
                    }
                }
            }
            Order::Close { services, .. } if names_twice(services.iter()) => {
                self.refuse(OrderRefusal::Malformed, &"it names a service twice");
            }
            Order::Close { client, services, .. } if !self.are_in_time(client, services.len()) => {
                self.refuse(OrderRefusal::TooFast, &client);
            }
            Order::Close { client, services, source } => self.close(client, &services, source),
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

    async fn open(
        &mut self,
        client: ClientId,
        service: &ServiceName,
        window: Window,
        source: IpAddr,
        from_port: Option<NonZeroU16>,
        decided: BootTime,
    ) -> Result<(), OrderRefusal> {
        let now = Now::read();
        // Each service of an order counts: each can be a rule.
        if !self.are_in_time(client, 1) {
            return Err(OrderRefusal::TooFast);
        }
        let (member, entry) = self.roll.entitled(client, service, window, source, now.wall)?;
        let name = member.name.clone();
        let left = window.duration().saturating_sub(now.boot.since(decided));
        if left.is_zero() {
            return Err(OrderRefusal::Late);
        }
        let key = LeaseKey { client: name.clone(), service: service.clone(), source, from_port };
        let (lease, replaces) = match self.ledger.plan(now, key, &entry.ports, left) {
            Plan::Unchanged => {
                debug!(client = %name, %service, %source, "granted already for as long");
                return Ok(());
            }
            Plan::Extend(lease) => {
                self.granted(lease);
                return Ok(());
            }
            Plan::Grant { lease, replaces } => (lease, replaces),
        };
        if replaces.is_none() && !self.ledger.has_room_for(&name, member.max_leases) {
            return Err(OrderRefusal::TooManyLeases);
        }
        if let Err(error) = self.let_in(&lease).await {
            error!(client = %name, %service, %source, %error, "not granted: the firewall failed");
            self.later(Closing::Lease(lease));
            return Ok(());
        }
        self.granted(lease);
        if let Some(old) = replaces {
            self.later(Closing::Lease(old));
        }
        Ok(())
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

fn names_twice<'a>(mut services: impl Iterator<Item = &'a ServiceName>) -> bool {
    let mut named = HashSet::new();
    services.any(|name| !named.insert(name))
}
