//! Names of one's own, while they change.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway::demo::names;
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use serde_json::{Value, json};

const NAME: &str = "w.shop.example";

fn leads_to(service: &str) -> Value {
    json!({"dns": {"zones": ["shop.example"], "names": [{"name": NAME, "service": format!("shop/{service}")}]}})
}

async fn address(mesh: &Mesh, name: &'static str) -> Result<IpAddr> {
    let server = mesh.cloud("a").dns(0)?;
    mesh.cloud("a").net().pods().run(async move { names::address_of(server, name).await }).await
}

fn retarget(mesh: &Mesh, service: &str) -> Result<()> {
    let mut main = mesh.cloud("a").main_value(0)?;
    files::merge(&mut main, &leads_to(service));
    files::write(&mesh.cloud("a").main_file(0), &main)
}

lab_test! {
    /// A live name moves from one service to another and back, and never goes dark: whichever service comes
    /// first by name.
    async fn a_name_is_retargeted_without_a_gap() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &leads_to("web")).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "echo", 12, Habit::Http).await?;
        let (web, echo) = (mesh.target("a", "web").await?.ip(), mesh.target("a", "echo").await?.ip());
        ensure!(web != echo, "two services have one address");
        within(Duration::from_secs(5), "the name leads to web", async || Ok(address(&mesh, NAME).await? == web)).await?;
        for (service, to) in [("echo", echo), ("web", web), ("echo", echo)] {
            retarget(&mesh, service)?;
            within(Duration::from_secs(5), format!("the name leads to {service}"), async || {
                // An error here would be a moment without an answer.
                let now = address(&mesh, NAME).await;
                ensure!(now.is_ok(), "the name went dark: {now:?}");
                Ok(now? == to)
            }).await?;
        }
        mesh.stop().await
    }
}
