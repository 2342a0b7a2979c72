//! Rules of the importing side.

use std::time::Duration;

use eastway_model::LocalChange;

use crate::testing::{Pair, endpoint, key, service};

#[test]
fn a_snapshot_and_then_changes_arrive() {
    let mut pair = Pair::new();
    pair.sync([service("shop/a", [endpoint(1, "v1")]), service("shop/b", [])]);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.imported(), ["shop/a", "shop/b"]);
    pair.upsert(service("shop/c", []));
    pair.local(LocalChange::Remove(key("shop/a")));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.imported(), ["shop/b", "shop/c"]);
    assert!(pair.closed.is_empty() && pair.rejected.is_empty(), "{:?} {:?}", pair.closed, pair.rejected);
}
