//! The web quickstart of the README: counts the visits of each visitor, in the directory `sessions`.

use axum::{Router, routing::get};
use sessile::web::{Session, SessionLayer};
use sessile::{Error, Policy, Store};

async fn visits(session: Session) -> Result<String, Error> {
    session.add("visits", 1)?;
    Ok(format!("visit {}", session.get::<u64>("visits")?.unwrap_or_default()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open("sessions")?;
    let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
    let app = Router::new().route("/", get(visits)).layer(SessionLayer::new(&store, &visitors));
    Ok(axum::serve(tokio::net::TcpListener::bind("127.0.0.1:8080").await?, app).await?)
}
