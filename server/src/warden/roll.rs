//! The roll: which client may have which service, and on which ports. No secret is in it. The warden checks every
//! order against it, so that a front that was taken over gets no further than its clients could (P6).

use std::collections::HashMap;

use postern_proto::{ClientId, ClientName, Port, ServiceName, Window};

/// What the warden knows of one client.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: ClientName,
    pub(crate) services: Vec<ServiceName>,
    pub(crate) max_window: Option<Window>,
    pub(crate) max_leases: u32,
}

/// What the warden knows of one service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) ports: Vec<Port>,
    pub(crate) max_window: Window,
}

/// Clients that may knock, and services that may be opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roll {
    pub(crate) members: HashMap<ClientId, Member>,
    pub(crate) services: HashMap<ServiceName, Service>,
}

impl Roll {
    /// The client and the service, if the one may have the other for this long.
    pub(crate) fn entitled(
        &self,
        client: ClientId,
        service: &ServiceName,
        window: Window,
    ) -> Option<(&Member, &Service)> {
        let member = self.members.get(&client)?;
        let entry = self.services.get(service)?;
        let most = member.max_window.map_or(entry.max_window, |own| own.min(entry.max_window));
        (member.services.contains(service) && window <= most).then_some((member, entry))
    }

    /// Whether the client may still have the service, and the service still these ports.
    pub(crate) fn still_allows(&self, client: &ClientName, service: &ServiceName, ports: &[Port]) -> bool {
        let may = |member: &Member| member.name == *client && member.services.contains(service);
        let entry = self.services.get(service);
        entry.is_some_and(|entry| ports.iter().all(|port| entry.ports.contains(port)))
            && self.members.values().any(may)
    }
}
