//! What a client may ask for, and the check that turns a fresh knock into a request to be granted (SPEC 5, steps 7
//! and 8).

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use postern_proto::keyfile::ClientEntry;
use postern_proto::{Authentic, Epoch, Refusal, Request, ServiceName, Services, WallTime, Window};
use serde::{Deserialize, Serialize};

use crate::address::is_within;

/// The windows of the gate's services.
pub type ServiceTable = HashMap<ServiceName, ServiceLimits>;

/// How long a service may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceLimits {
    /// Unless the knock asks for a window of its own.
    pub window: Window,
    /// At the most.
    pub max_window: Window,
}

/// What one client may ask for.
#[expect(clippy::struct_excessive_bools, reason = "each is a line of its entry")]
pub struct Policy {
    services: Vec<ServiceName>,
    max_window: Option<Window>,
    sources: Vec<IpNet>,
    must_state_source: bool,
    may_state_other_source: bool,
    not_before: Option<WallTime>,
    expires: Option<WallTime>,
    disabled: bool,
    must_sign: bool,
    /// How many leases it may hold at a time.
    pub max_leases: u32,
}

/// What a client may have, before the gate's quotas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permitted {
    /// These services, each for its window.
    Open(Vec<(ServiceName, Window)>),
    /// These services closed.
    Close(Services),
    /// Nothing, which is all that it asked for.
    Probe,
}

impl Policy {
    /// The policy of an entry of the key file.
    #[must_use]
    pub fn of(entry: &ClientEntry) -> Self {
        Self {
            services: entry.services.clone(),
            max_window: entry.max_window,
            sources: entry.sources.clone(),
            must_state_source: entry.must_state_source,
            may_state_other_source: entry.may_state_other_source,
            not_before: entry.not_before,
            expires: entry.expires,
            disabled: entry.disabled,
            must_sign: entry.identity.is_some() || entry.authorized_keys.is_some(),
            max_leases: entry.max_leases.unwrap_or(ClientEntry::DEFAULT_MAX_LEASES),
        }
    }

    /// Whether the client is refused whatever it asks for.
    pub(crate) const fn is_disabled(&self) -> bool {
        self.disabled
    }

    /// Whether a knock of this epoch can be valid at all: what cannot is not even in the hint table.
    pub(super) fn may_knock_in(&self, epoch: Epoch) -> bool {
        let begun = self.not_before.is_none_or(|from| from < epoch.next().start());
        let over = self.expires.is_some_and(|until| until <= epoch.start());
        begun && !over && !self.disabled
    }

    /// Decides on a knock that would let `source` in.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub(super) fn permit(
        &self,
        services: &ServiceTable,
        now: WallTime,
        knock: &Authentic,
        observed: IpAddr,
    ) -> Result<Permitted, Refusal> {
        let source = knock.source(observed);
        if self.not_before.is_some_and(|from| now < from) {
            return Err(Refusal::NotYetValid);
        }
        if self.expires.is_some_and(|until| until <= now) {
            return Err(Refusal::Expired);
        }
        if self.must_state_source && !knock.states_source() {
            return Err(Refusal::SourceNotStated);
        }
        if source != observed && !self.may_state_other_source {
            return Err(Refusal::SourceNotOwn);
        }
        if !is_within(source, &self.sources) {
            return Err(Refusal::SourceNotAllowed);
        }
        let permitted = self.services_of(services, knock.request())?;
        if self.must_sign && !knock.is_signed() { Err(Refusal::Unsigned) } else { Ok(permitted) }
    }

    /// What it may have of what it asks for.
    fn services_of(&self, services: &ServiceTable, request: &Request) -> Result<Permitted, Refusal> {
        match request {
            Request::Open { services: wanted, window, .. } => wanted
                .iter()
                .map(|name| Ok((name.clone(), self.window(*self.service(services, name)?, *window)?)))
                .collect::<Result<_, _>>()
                .map(Permitted::Open),
            Request::Close { services: wanted } => {
                wanted.iter().try_for_each(|name| self.service(services, name).map(drop))?;
                Ok(Permitted::Close(wanted.clone()))
            }
            Request::Probe => Ok(Permitted::Probe),
        }
    }

    fn service<'a>(&self, table: &'a ServiceTable, name: &ServiceName) -> Result<&'a ServiceLimits, Refusal> {
        let limits = table.get(name).ok_or(Refusal::UnknownService)?;
        if self.services.contains(name) { Ok(limits) } else { Err(Refusal::ServiceNotAllowed) }
    }

    /// A window that was asked for must fit; one that was not is cut to what the client may have.
    fn window(&self, limits: ServiceLimits, asked: Option<Window>) -> Result<Window, Refusal> {
        let most = self.max_window.map_or(limits.max_window, |own| own.min(limits.max_window));
        match asked {
            Some(window) if window > most => Err(Refusal::WindowTooLong),
            Some(window) => Ok(window),
            None => Ok(limits.window.min(most)),
        }
    }
}
