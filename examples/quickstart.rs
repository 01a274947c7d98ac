//! The quickstart of the README: counts the visits of one visitor in the directory `sessions`.

#![expect(clippy::print_stdout, reason = "a program talks")]

use sessile::{Error, Policy, Store};

fn main() -> Result<(), Error> {
    let store = Store::open("sessions")?; // a directory; made if absent
    let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;

    let report = store.transact(|txn| {
        let session = txn.get_or_create(&visitors, "ada")?;
        session.insert("name", "Ada Lovelace")?; // any serde value
        session.add("visits", 1)?; // merges, never conflicts
        session.get::<u64>("visits")
    })?;
    println!("visit {}, commit {}", report.value.unwrap_or_default(), report.revision);
    Ok(())
}
