//! Bytes have changed behind the store's back.

use std::fs;
use std::path::Path;

use redb::{Database, TableDefinition};
use sessile::{Error, Store};

use crate::{Place, copy_directory, got, put, shop, until};

const SESSIONS: TableDefinition<'_, (u32, &[u8]), &[u8]> = TableDefinition::new("sessions");
const BUCKETS: TableDefinition<'_, (u32, u64, &[u8]), ()> = TableDefinition::new("buckets");

/// The rows of a session are gone, and the container counts it still. After a process that died the
/// store finds out, while others come and go, and counts right from then on.
#[test]
fn a_count_that_is_wrong_is_corrected() {
    let place = Place::new();
    let store = place.open();
    let the_shop = shop(&store);
    for n in 0..1_000 {
        put(&store, &the_shop, &format!("{n:04}"), n).unwrap();
    }
    store.fold().unwrap();
    let copy = place.crash();
    let database = Database::open(copy.join("sessions.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    let gone = [17, 400, 999].map(|n| format!("{n:04}"));
    for key in &gone {
        let key = key.as_bytes();
        txn.open_table(SESSIONS).unwrap().remove((1, key)).unwrap().expect("it was there");
        txn.open_table(BUCKETS).unwrap().retain(|(_, _, other), ()| other != key).unwrap();
    }
    txn.commit().unwrap();
    drop(database);

    let store = place.options().open(&copy).unwrap();
    let the_shop = store.container("shop").unwrap();
    let (mut there, mut next) = (997, 1_000);
    until("the count is right", || {
        put(&store, &the_shop, &format!("{next:04}"), next).unwrap();
        (there, next) = (there + 1, next + 1);
        store.begin().unwrap().len(&the_shop).unwrap() == there
    });
    assert!(store.check().unwrap().problems.is_empty());
    // It is committed like everything else.
    let dead = copy.with_extension("dead");
    copy_directory(&copy, &dead);
    store.close().unwrap();
    for path in [copy, dead] {
        let store = place.options().open(path).unwrap();
        let the_shop = store.container("shop").unwrap();
        assert_eq!(store.begin().unwrap().len(&the_shop).unwrap(), there);
        assert!(gone.iter().all(|key| got(&store, &the_shop, key).is_none()));
        assert!(store.check().unwrap().problems.is_empty());
    }
}

/// A marker or tables that are cut off are refused, and left as they are.
#[test]
fn what_is_cut_off_is_refused_and_left_alone() {
    let place = Place::new();
    let store = place.open();
    let the_shop = shop(&store);
    (0..200).for_each(|n| drop(put(&store, &the_shop, &n.to_string(), n).unwrap()));
    store.close().unwrap();
    for name in ["sessile", "sessions.redb"] {
        for part in 0..4 {
            let copy = place.directory.path().join(format!("{name}-{part}"));
            copy_directory(&place.path, &copy);
            let file = copy.join(name);
            let whole = fs::read(&file).unwrap();
            fs::write(&file, &whole[..whole.len() * part / 4]).unwrap();
            let before = contents(&copy);
            let refused = Store::open(&copy).unwrap_err();
            let is_told = matches!(refused, Error::Corrupt { .. } | Error::NotAStore { .. });
            assert!(is_told, "{part} quarters of {name}: {refused:?}");
            assert!(contents(&copy) == before, "{part} quarters of {name} were changed");
            fs::write(&file, whole).unwrap();
            let store = place.options().open(&copy).unwrap();
            let the_shop = store.container("shop").unwrap();
            assert!((0..200).all(|n| got(&store, &the_shop, &n.to_string()) == Some(n)));
        }
    }
}

/// Every file but the lock, which says who was there last.
fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut files: Vec<_> = files.map(|path| (name(&path), fs::read(&path).unwrap())).collect();
    files.retain(|(name, _)| name != "lock");
    files.sort();
    files
}
