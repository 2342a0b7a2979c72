//! Selections of one view.

use eastway_model::ServiceKey;
use eastway_proto::xds::discovery::Hint;

use super::*;
use crate::kind::Kind;

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

/// A cluster of these services; of nobody's if there are none.
fn cluster(name: &str, content: &str, owners: &[&str]) -> Edit {
    let resource = Resource::new(Kind::Cluster, name, &Hint { string_value: Some(content.to_owned()) });
    let owners: Vec<ServiceKey> = owners.iter().map(|owner| owner.parse().unwrap()).collect();
    Edit::Put(Kind::Cluster, resource.owned_by(&owners.into()))
}

fn rules(rules: &[(&str, &[&str])]) -> Arc<Visibility> {
    let rule = |(namespace, services): &(&str, &[&str])| {
        let services = services.iter().map(|text| text.parse().unwrap()).collect();
        (label(namespace), Arc::new(Visible { namespace: label(namespace), services }))
    };
    Arc::new(rules.iter().map(rule).collect())
}

fn names(views: &mut Views) -> Vec<String> {
    let view = views.borrow_and_update().clone().unwrap();
    view.all(Kind::Cluster).map(|cluster| cluster.name().to_string()).collect()
}

fn next(view: &Arc<View>, edits: impl IntoIterator<Item = Edit>) -> Arc<View> {
    Arc::new(view.edited(edits).unwrap())
}

#[test]
fn a_namespace_sees_what_its_rule_shows_and_others_see_all() {
    let scopes = Scopes::default();
    let (mut shop, mut bank) = (scopes.of(&label("shop")), scopes.of(&label("bank")));
    assert!(shop.borrow().is_none(), "nothing is known yet");
    let all = [
        cluster("gateway", "1", &[]),
        cluster("ledger", "1", &["bank/ledger"]),
        cluster("rates", "1", &["rates/api", "shop/cart"]),
        cluster("web", "1", &["shop/web"]),
    ];
    let shared = next(&Arc::default(), all);
    scopes.publish(Arc::clone(&shared), &rules(&[("shop", &[])]));
    assert_eq!(names(&mut shop), ["gateway", "rates", "web"], "what a service's rules lead to comes with it");
    assert_eq!(names(&mut bank), ["gateway", "ledger", "rates", "web"]);
    // The same resources, not copies.
    let (mine, all) = (shop.borrow().clone().unwrap(), bank.borrow().clone().unwrap());
    assert!(Arc::ptr_eq(mine.get(Kind::Cluster, "web").unwrap(), all.get(Kind::Cluster, "web").unwrap()));
    assert!(Arc::ptr_eq(&all, &shared));
    // All clients of a namespace see one view.
    assert!(Arc::ptr_eq(&mine, &scopes.of(&label("shop")).borrow().clone().unwrap()));
    scopes.publish(Arc::clone(&shared), &rules(&[("shop", &["bank/*"])]));
    assert_eq!(names(&mut shop), ["gateway", "ledger", "rates", "web"]);
    let changed: Vec<_> = shop.borrow().as_ref().unwrap().changes_since(&mine).unwrap().into_iter().collect();
    assert_eq!(changed, [(Kind::Cluster, "ledger".into())], "another rule is a small change");
    scopes.publish(shared, &Arc::default());
    assert_eq!(names(&mut shop).len(), 4);
    assert_eq!(shop.borrow().as_ref().unwrap().changes_since(&mine), None, "of another line: compare everything");
}

#[test]
fn what_a_namespace_does_not_see_does_not_wake_it() {
    let scopes = Scopes::default();
    let mut shop = scopes.of(&label("shop"));
    let rule = rules(&[("shop", &["rates/api"])]);
    let first = next(&Arc::default(), [cluster("ledger", "1", &["bank/ledger"]), cluster("web", "1", &["shop/web"])]);
    scopes.publish(Arc::clone(&first), &rule);
    assert_eq!(names(&mut shop), ["web"]);
    let second = next(&first, [cluster("ledger", "2", &["bank/ledger"])]);
    scopes.publish(Arc::clone(&second), &rule);
    let third = next(&second, [Edit::Remove(Kind::Cluster, "ledger".into())]);
    scopes.publish(Arc::clone(&third), &rule);
    assert!(!shop.has_changed().unwrap());
    // What one sees of it begins and ends with a rule that leads there.
    let fourth = next(&third, [cluster("ledger", "2", &["bank/ledger", "shop/cart"])]);
    scopes.publish(Arc::clone(&fourth), &rule);
    assert!(shop.has_changed().unwrap());
    assert_eq!(names(&mut shop), ["ledger", "web"]);
    let fifth = next(&fourth, [cluster("ledger", "2", &["bank/ledger"])]);
    scopes.publish(Arc::clone(&fifth), &rule);
    assert_eq!(names(&mut shop), ["web"]);
    // However many views were missed.
    let mut view = fifth;
    for number in 0..200 {
        view = next(&view, [cluster("web", &number.to_string(), &["shop/web"])]);
    }
    scopes.publish(Arc::clone(&view), &rule);
    let seen = shop.borrow_and_update().clone().unwrap();
    assert!(seen.get(Kind::Cluster, "web").unwrap().is_as(view.get(Kind::Cluster, "web").unwrap()));
}

#[test]
fn nothing_is_kept_for_namespaces_without_clients() {
    let scopes = Scopes::default();
    let rule = rules(&[("shop", &[])]);
    let shared = next(&Arc::default(), [cluster("web", "1", &["shop/web"])]);
    let shop = scopes.of(&label("shop"));
    scopes.publish(Arc::clone(&shared), &rule);
    drop(shop);
    scopes.publish(Arc::clone(&shared), &rule);
    assert!(scopes.lock().scopes.is_empty());
    assert_eq!(names(&mut scopes.of(&label("shop"))), ["web"], "who comes later is told at once");
}
