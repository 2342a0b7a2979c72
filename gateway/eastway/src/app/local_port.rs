//! The local port: what the other processes of this cluster are told.

use tokio::sync::watch;
use tracing::error;

use super::{BuildError, Running, sidecars};
use crate::app::frontend::Outputs;
use crate::config::Settings;
use crate::local::links as link_facts;
use crate::local::listener::LocalListener;
use crate::local::server::{self as feed, FeedSource};
use crate::roles::CONTROLLER_ACCOUNT;

/// How many sidecars may connect to it.
pub(super) fn sidecars(settings: &Settings) -> usize {
    if settings.sidecars.is_some() { sidecars::MAX_SIDECARS } else { 0 }
}

impl Running {
    /// The services whose endpoint records are wanted: those of headless ones, and where there are sidecars, which
    /// reach single endpoints, all.
    pub(super) fn subscriptions(&self, outputs: &Outputs) -> sidecars::Subscriptions {
        let headless = outputs.subscriptions.subscribe();
        if self.gateway.settings.sidecars.is_none() {
            return headless;
        }
        let (sender, all) = watch::channel(headless.borrow().clone());
        let follow = sidecars::subscribe(self.gateway.reader.clone(), headless, sender, self.end.clone());
        self.spawn("subscriptions", follow);
        all
    }

    /// Tells the controller of this cluster what peers export, and the sidecars what they are to do.
    pub(super) fn serve_local_port(&self, listener: Option<LocalListener>) -> Result<(), BuildError> {
        let gateway = &self.gateway;
        let (Some(listener), Some(identity)) = (listener, gateway.identity.get()) else { return Ok(()) };
        let listener = listener.with_last_words(gateway.revoked.subscribe());
        let (facts, latest) = watch::channel(link_facts::AllFacts::default());
        self.spawn("links of the feed", link_facts::follow(gateway.clone(), facts, self.end.clone()));
        let source = FeedSource {
            reader: gateway.reader.clone(),
            known: gateway.known_peers.subscribe(),
            links: latest,
            clock: gateway.clock,
            telemetry: gateway.telemetry.clone(),
        };
        let controller = gateway.settings.service_account(CONTROLLER_ACCOUNT)?;
        let sidecars = gateway.settings.sidecars.as_ref().map(|settings| {
            let (server, publish) = sidecars::serve(gateway, settings, self.end.clone())?;
            self.spawn("sidecars", publish);
            Ok::<_, BuildError>(server)
        });
        let sidecars = sidecars.transpose()?;
        let serve = feed::serve(listener, source, identity.clone(), controller, sidecars, self.end.clone());
        self.spawn("local port", async move {
            if let Err(error) = serve.await {
                error!(%error, "the local port ended");
            }
        });
        Ok(())
    }
}
