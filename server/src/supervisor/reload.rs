//! A reload: what the files say now is taken over whole, or everything stays as it was.

use std::mem::replace;

use anyhow::ensure;
use sd_notify::NotifyState;
use tracing::{error, info};

use super::{Supervisor, front, notify, runner, say_remarks, warden};
use crate::config::Config;

/// Which processes live on through a reload.
#[derive(Clone, Copy)]
struct Kept {
    front: bool,
    warden: bool,
}

impl Supervisor {
    /// Reloads, and tells systemd and the log what became of it.
    pub(super) async fn reload_and_say(&mut self) -> Result<(), String> {
        // systemd asks for the time with it, to tell this reload from an earlier one.
        let since = NotifyState::monotonic_usec_now();
        notify(&[Some(NotifyState::Reloading), since.ok()].into_iter().flatten().collect::<Vec<_>>());
        let result = self.reload().await;
        match &result {
            Ok(()) => info!(clients = self.config.clients.len(), "reloaded"),
            Err(error) => error!("not reloaded; everything stays as it was: {error:#}"),
        }
        notify(&[NotifyState::Ready]);
        result.map_err(|error| format!("not reloaded; everything stays as it was: {error:#}"))
    }

    /// Takes over what the files say now: live where that can be, with new processes where it cannot.
    async fn reload(&mut self) -> anyhow::Result<()> {
        let config = Config::read_all(&self.files)?;
        ensure!(config.admin == self.config.admin, "[admin] has changed: restart posternd for that");
        ensure!(
            self.errands.is_some() || config.commands().is_empty(),
            "commands need privileges that were given up at the start: restart posternd for them"
        );
        let identity = config.identity()?;
        say_remarks(&config);
        let is_same_user = identity == self.identity;
        let keeps = Kept {
            front: is_same_user && config.watch() == self.config.watch(),
            warden: is_same_user && config.reach() == self.config.reach(),
        };
        let old = (replace(&mut self.config, config), replace(&mut self.identity, identity));
        let result = self.take_over(keeps).await;
        if result.is_ok() {
            self.uses.expect(&self.config.clients);
        } else {
            // Who lives on did not take the new settings. Who had to make room comes back by the old ones.
            (self.config, self.identity) = old;
            self.warden.due_if_vacant();
            if !keeps.front {
                self.front.dismiss().await;
                self.front.due_at_once();
            }
        }
        result
    }

    /// Has front and warden work by the settings.
    async fn take_over(&mut self, keeps: Kept) -> anyhow::Result<()> {
        // A new front first, which reads no knock before it is told to: where it cannot start, no lease has ended yet.
        if !keeps.front {
            self.front.dismiss().await;
            self.start_front().await?;
            self.front.settle().await?;
        }
        if keeps.warden {
            let (guard, roll) = (self.config.guard(self.trial_end), self.config.roll());
            self.warden.ask(&warden::Command::Reload { guard, roll }).await?;
        } else {
            self.warden.dismiss().await;
            self.settle_warden().await?;
        }
        if self.errands.is_some() {
            let told = self.runner.ask(&runner::Command::Reload(self.config.commands())).await;
            if let Err(error) = told {
                self.runner.give_up(&error).await;
            }
        }
        if keeps.front {
            let told = self.front.ask(&front::Command::Reload(self.config.enrolled())).await;
            // The warden has the new settings: a front that has not, for whatever it says, is replaced by one that has.
            if let Err(error) = told {
                self.front.give_up(&error).await;
            }
        } else if let Err(error) = self.front.tell(&front::Command::Begin).await {
            self.front.give_up(&error).await;
        }
        Ok(())
    }
}
