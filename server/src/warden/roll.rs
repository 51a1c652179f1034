//! The roll: which client may have which service, and on which ports. No secret is in it. The warden checks every
//! order against it, so that a front that was taken over gets no further than its clients could (P6).

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use postern_proto::{ClientId, ClientName, Port, ServiceName, WallTime, Window};
use serde::{Deserialize, Serialize};

use super::ledger::Lease;
use super::refusal::OrderRefusal;
use crate::address::{is_usable_source, is_within};

/// What the warden knows of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: ClientName,
    pub(crate) services: Vec<ServiceName>,
    pub(crate) max_window: Option<Window>,
    pub(crate) max_leases: u32,
    /// Networks that the address to let in must belong to; any when empty.
    pub(crate) sources: Vec<IpNet>,
    pub(crate) not_before: Option<WallTime>,
    pub(crate) expires: Option<WallTime>,
}

/// What the warden knows of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) ports: Vec<Port>,
    pub(crate) max_window: Window,
    /// Whether the runner has commands for its leases.
    pub(crate) has_commands: bool,
}

/// Clients that may knock, and services that may be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roll {
    pub(crate) members: HashMap<ClientId, Member>,
    pub(crate) services: HashMap<ServiceName, Service>,
}

impl Roll {
    /// The client and the service, if the one may have the other for this long, for this source, now.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub(crate) fn entitled(
        &self,
        client: ClientId,
        service: &ServiceName,
        window: Window,
        source: IpAddr,
        now: WallTime,
    ) -> Result<(&Member, &Service), OrderRefusal> {
        let member = self.members.get(&client).ok_or(OrderRefusal::UnknownClient)?;
        let entry = self.services.get(service).ok_or(OrderRefusal::UnknownService)?;
        member.may_have(service, source, now)?;
        if window > member.longest(entry) {
            return Err(OrderRefusal::WindowTooLong);
        }
        Ok((member, entry))
    }

    /// Whether a lease that was granted before would still be.
    pub(crate) fn still_allows(&self, lease: &Lease, now: WallTime) -> bool {
        let Some(entry) = self.services.get(&lease.key.service) else { return false };
        let is_allowed = |member: &Member| {
            let longest = member.longest(entry).duration();
            member.may_have(&lease.key.service, lease.key.source, now).is_ok()
                && lease.until.since(now) <= longest
        };
        lease.ports.iter().all(|port| entry.ports.contains(port))
            && self.members.values().any(|member| member.name == lease.key.client && is_allowed(member))
    }
}

impl Member {
    fn may_have(&self, service: &ServiceName, source: IpAddr, now: WallTime) -> Result<(), OrderRefusal> {
        if !self.services.contains(service) {
            return Err(OrderRefusal::ServiceNotAllowed);
        }
        if !is_within(source, &self.sources) || !is_usable_source(source) {
            return Err(OrderRefusal::SourceNotAllowed);
        }
        let (early, over) =
            (self.not_before.is_some_and(|from| now < from), self.expires.is_some_and(|until| until <= now));
        if early || over { Err(OrderRefusal::NotValidNow) } else { Ok(()) }
    }

    fn longest(&self, service: &Service) -> Window {
        self.max_window.map_or(service.max_window, |own| own.min(service.max_window))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::BootTime;
    use crate::warden::ledger::{LeaseId, LeaseKey};

    fn alice() -> ClientId {
        ClientId::from_bytes([1; 8])
    }

    fn roll() -> Roll {
        let member = Member {
            name: "alice".parse().unwrap(),
            services: vec!["ssh".parse().unwrap()],
            max_window: Window::from_secs(60).ok(),
            max_leases: 2,
            sources: vec!["192.0.2.0/24".parse().unwrap(), "127.0.0.0/8".parse().unwrap()],
            not_before: Some(WallTime::from_secs(100)),
            expires: Some(WallTime::from_secs(200)),
        };
        let service = |port: &str| Service {
            ports: vec![port.parse().unwrap()],
            max_window: Window::DEFAULT_MAX,
            has_commands: false,
        };
        Roll {
            members: [(alice(), member)].into(),
            services: [
                ("ssh".parse().unwrap(), service("22/tcp")),
                ("web".parse().unwrap(), service("80/tcp")),
            ]
            .into(),
        }
    }

    #[test]
    fn an_order_gets_no_further_than_its_client() {
        use OrderRefusal::*;
        let bob = ClientId::from_bytes([2; 8]);
        for (client, service, window, source, now, expected) in [
            (alice(), "ssh", 60, "192.0.2.1", 150, None),
            (bob, "ssh", 60, "192.0.2.1", 150, Some(UnknownClient)),
            (alice(), "ftp", 60, "192.0.2.1", 150, Some(UnknownService)),
            (alice(), "web", 60, "192.0.2.1", 150, Some(ServiceNotAllowed)),
            (alice(), "ssh", 61, "192.0.2.1", 150, Some(WindowTooLong)),
            (alice(), "ssh", 60, "198.51.100.1", 150, Some(SourceNotAllowed)),
            (alice(), "ssh", 60, "127.0.0.1", 150, Some(SourceNotAllowed)),
            (alice(), "ssh", 60, "192.0.2.1", 99, Some(NotValidNow)),
            (alice(), "ssh", 60, "192.0.2.1", 200, Some(NotValidNow)),
        ] {
            let (window, now) = (Window::from_secs(window).unwrap(), WallTime::from_secs(now));
            let roll = roll();
            let entitled =
                roll.entitled(client, &service.parse().unwrap(), window, source.parse().unwrap(), now);
            assert_eq!(entitled.err(), expected, "{service} {window} {source} {now}");
        }
    }

    #[test]
    fn a_lease_lives_while_it_would_still_be_granted() {
        let key = LeaseKey {
            client: "alice".parse().unwrap(),
            service: "ssh".parse().unwrap(),
            source: "192.0.2.1".parse().unwrap(),
            from_port: None,
        };
        let now = WallTime::from_secs(150);
        let lease = Lease {
            key,
            id: LeaseId(1),
            ports: vec!["22/tcp".parse().unwrap()],
            from: now,
            until: now.after(Duration::from_mins(1)),
            ends: BootTime::from_boot(Duration::ZERO),
        };
        assert!(roll().still_allows(&lease, now));
        let changes: [fn(&mut Roll); 6] = [
            |roll| roll.members.clear(),
            |roll| drop(roll.services.remove(&"ssh".parse().unwrap())),
            |roll| {
                let ssh = roll.services.get_mut(&"ssh".parse().unwrap()).unwrap();
                ssh.ports = vec!["23/tcp".parse().unwrap()];
            },
            |roll| roll.members.get_mut(&alice()).unwrap().services.clear(),
            |roll| roll.members.get_mut(&alice()).unwrap().sources = vec!["10.0.0.0/8".parse().unwrap()],
            |roll| roll.members.get_mut(&alice()).unwrap().max_window = Window::from_secs(59).ok(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut roll = roll();
            change(&mut roll);
            assert!(!roll.still_allows(&lease, now), "change {index}");
        }
        assert!(!roll().still_allows(&lease, WallTime::from_secs(200)), "expired");
    }
}
