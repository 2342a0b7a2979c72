use std::collections::BTreeMap;

use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Thing {
    value: u32,
}

fn good(name: &str, uid: u32, version: u32) -> Decoded<Thing> {
    object(name, uid, version, &format!("\"value\": {version}"))
}

fn bad(name: &str, uid: u32, version: u32) -> Decoded<Thing> {
    object(name, uid, version, "\"value\": \"many\"")
}

fn object(name: &str, uid: u32, version: u32, body: &str) -> Decoded<Thing> {
    let meta = format!(r#"{{"namespace": "shop", "name": "{name}", "uid": "{uid}", "resourceVersion": "{version}"}}"#);
    Decoded::of(&format!(r#"{{"metadata": {meta}, {body}}}"#))
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn set(object: &str, value: u32) -> Difference<Thing> {
    Difference::Set(name(object), Arc::new(Thing { value }))
}

/// Everything that a list of these leads to, in one.
fn relist(table: &mut Table<Thing>, objects: Vec<Decoded<Thing>>) -> Vec<Difference<Thing>> {
    assert!(table.handle(Event::Init).differences.is_empty());
    for object in objects {
        assert!(table.handle(Event::InitApply(object)).differences.is_empty());
    }
    table.handle(Event::InitDone).differences
}

#[test]
fn f18_a_relist_is_one_difference_and_what_stayed_is_not_told() {
    let mut table = Table::default();
    assert_eq!(relist(&mut table, vec![good("a", 1, 1)]), [set("a", 1)]);
    table.handle(Event::Apply(good("b", 2, 2)));
    assert!(relist(&mut table, vec![good("a", 1, 1), good("b", 2, 2)]).is_empty());
    // Changes, removals and a successor of the same name that the outage hid.
    let differences = relist(&mut table, vec![good("a", 9, 7)]);
    assert_eq!(differences, [Difference::Gone(name("b")), set("a", 7)]);
    assert!(table.handle(Event::Apply(good("a", 9, 7))).differences.is_empty(), "an event that came twice");
}

#[test]
fn a_list_that_ends_early_removes_nothing() {
    let mut table = Table::default();
    relist(&mut table, vec![good("a", 1, 1), good("b", 2, 2)]);
    table.handle(Event::Init);
    table.handle(Event::InitApply(good("a", 1, 1)));
    // The server starts over.
    assert!(relist(&mut table, vec![good("a", 1, 1), good("b", 2, 2)]).is_empty());
    assert_eq!(table.len(), 2);
}

#[test]
fn an_eager_first_list_is_told_as_it_comes() {
    let mut table = Table { eager: true, ..Table::default() };
    table.handle(Event::Init);
    assert_eq!(table.handle(Event::InitApply(good("a", 1, 1))).differences, [set("a", 1)]);
    assert_eq!(table.handle(Event::InitApply(bad("b", 2, 2))).quarantined.len(), 1);
    assert!(!table.listed(), "there may be more");
    // The server starts over; what was told is compared with what there is now.
    assert_eq!(relist(&mut table, vec![good("b", 2, 3)]), [Difference::Gone(name("a")), set("b", 3)]);
    assert!(table.listed() && table.bad().len() == 0);
}

#[test]
fn f19_a_bad_object_is_quarantined_and_the_others_go_on() {
    let mut table = Table::default();
    assert_eq!(relist(&mut table, vec![bad("a", 1, 1), good("b", 2, 2)]), [set("b", 2)]);
    assert_eq!(table.bad().map(|(name, _)| name.clone()).collect::<Vec<_>>(), [name("a")]);
    let again = table.handle(Event::Apply(bad("a", 1, 3)));
    assert!(again.quarantined.is_empty(), "told once per mistake, whatever else changes in the object");
    assert_eq!(table.handle(Event::Apply(bad("a", 3, 4))).quarantined.len(), 1, "another object of the name");
    assert_eq!(table.handle(Event::Apply(good("a", 3, 5))).differences, [set("a", 5)]);
    assert_eq!(table.bad().len(), 0);
}

#[test]
fn i4_a_mistake_in_an_object_removes_nothing() {
    let mut table = Table::default();
    relist(&mut table, vec![good("a", 1, 1)]);
    assert!(table.handle(Event::Apply(bad("a", 1, 2))).differences.is_empty());
    assert!(relist(&mut table, vec![bad("a", 1, 2)]).is_empty());
    assert_eq!(table.handle(Event::Delete(bad("a", 1, 3))).differences, [Difference::Gone(name("a"))]);
    // Another object of the name is no version of it.
    relist(&mut table, vec![good("a", 1, 1)]);
    assert_eq!(relist(&mut table, vec![bad("a", 2, 5)]), [Difference::Gone(name("a"))]);
    relist(&mut table, vec![good("a", 1, 1)]);
    assert_eq!(table.handle(Event::Apply(bad("a", 2, 5))).differences, [Difference::Gone(name("a"))]);
    assert_eq!(table.handle(Event::Apply(good("a", 2, 6))).differences, [set("a", 6)]);
}

#[derive(Clone, Debug)]
enum Step {
    Set {
        object: u8,
        good: bool,
    },
    Delete(u8),
    /// Deleted and made anew.
    Replace(u8),
    /// What happens until the next list is not seen.
    Cut,
    Relist,
    /// A list that is not read to its end.
    HalfList(usize),
    /// The latest version of an object once more.
    Repeat(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_u8, prop::bool::weighted(0.8)).prop_map(|(object, good)| Step::Set { object, good }),
        3 => (0..5_u8).prop_map(Step::Delete),
        2 => (0..5_u8).prop_map(Step::Replace),
        1 => Just(Step::Cut),
        1 => Just(Step::Relist),
        1 => (0..5_usize).prop_map(Step::HalfList),
        2 => (0..5_u8).prop_map(Step::Repeat),
    ]
}

/// The server, and a reader that only hears differences.
#[derive(Default)]
struct Rig {
    table: Table<Thing>,
    objects: BTreeMap<String, (u32, u32, bool)>,
    next: u32,
    cut: bool,
    heard: BTreeMap<ObjectName, u32>,
}

impl Rig {
    fn decoded(&self, object: &str) -> Option<Decoded<Thing>> {
        let (uid, version, is_good) = self.objects.get(object)?;
        Some(if *is_good { good(object, *uid, *version) } else { bad(object, *uid, *version) })
    }

    fn event(&mut self, event: Event<Decoded<Thing>>) {
        if self.cut {
            return;
        }
        for difference in self.table.handle(event).differences {
            match difference {
                Difference::Set(name, thing) => drop(self.heard.insert(name, thing.value)),
                Difference::Gone(name) => assert!(self.heard.remove(&name).is_some(), "{name} was not there"),
            }
        }
    }

    fn relist(&mut self, until: usize) {
        self.cut = false;
        let all: Vec<_> = self.objects.keys().filter_map(|name| self.decoded(name)).collect();
        let complete = until >= all.len();
        self.event(Event::Init);
        for object in all.into_iter().take(until) {
            self.event(Event::InitApply(object));
        }
        if complete {
            self.event(Event::InitDone);
        }
        self.cut = !complete;
    }

    fn step(&mut self, step: &Step) {
        self.next += 1;
        let next = self.next;
        let name = |object: u8| format!("o{object}");
        match *step {
            Step::Set { object, good } => {
                let uid = self.objects.get(&name(object)).map_or(next, |object| object.0);
                self.objects.insert(name(object), (uid, next, good));
                let decoded = self.decoded(&name(object)).unwrap();
                self.event(Event::Apply(decoded));
            }
            Step::Delete(object) => {
                if let Some(decoded) = self.decoded(&name(object)) {
                    self.objects.remove(&name(object));
                    self.event(Event::Delete(decoded));
                }
            }
            Step::Replace(object) => {
                self.step(&Step::Delete(object));
                self.step(&Step::Set { object, good: true });
            }
            Step::Cut => self.cut = true,
            Step::Relist => self.relist(usize::MAX),
            Step::HalfList(until) => self.relist(until),
            Step::Repeat(object) => {
                if let Some(decoded) = self.decoded(&name(object)) {
                    self.event(Event::Apply(decoded));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_history_ends_as_the_last_list(steps in prop::collection::vec(step(), 0..60)) {
        let mut rig = Rig::default();
        rig.relist(usize::MAX);
        for step in steps {
            rig.step(&step);
        }
        rig.relist(usize::MAX);
        for (object, (_, version, is_good)) in &rig.objects {
            let heard = rig.heard.get(&name(object));
            if *is_good {
                prop_assert_eq!(heard, Some(version));
            } else {
                prop_assert!(heard.is_none_or(|heard| heard < version), "the last good version, or none");
            }
        }
        prop_assert!(rig.heard.keys().all(|name| rig.objects.contains_key(&*name.name)));
        let bad = rig.objects.values().filter(|(_, _, is_good)| !is_good).count();
        prop_assert_eq!(rig.table.bad().len(), bad);
    }
}
