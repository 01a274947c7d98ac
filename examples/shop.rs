//! A small shop that keeps its visitors' carts: sessile behind axum.
//!
//! ```text
//! cargo run --example shop -- DIR [ADDR]        then open http://127.0.0.1:8080 in two tabs
//! ```
//!
//! Both tabs write to one session, at the same time if they like, and nothing is lost. What there is to
//! learn:
//!
//! - **One line** gives every handler a [`Session`]: `.layer(SessionLayer::new(&store, &visitors))`. The
//!   layer looks the cookie up, commits before the answer is on its way, and never adopts a token that it
//!   has not made.
//! - **Writes that merge.** A visit is *added* to a counter and a fruit *appended* to the cart: neither
//!   reads what it changes, so neither can conflict. The note is written blindly: of two, the later stays.
//! - **A login** gives the session a new token, so that one that somebody has planted is worth nothing, and
//!   says whose it is: that makes the list of devices, and the way to log out of one or of all.
//! - **Every form has a token** ([`Session::csrf_token`]), which [`OwnForm`] checks before a handler runs.
//!
//! Nobody is asked for a password: a shop of yours does that first.

#![expect(clippy::print_stdout, reason = "a program may talk")]

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use axum::extract::{Form, FromRequest, Request};
use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sessile::web::{Session, SessionLayer};
use sessile::{Attribute, Error, Policy, SessionId, Store};

const CART: Attribute<Vec<String>> = Attribute::new("cart");
const NOTE: Attribute<String> = Attribute::new("note");
const VISITS: Attribute<u64> = Attribute::new("visits");

const CART_MAX: usize = 1_000;
const MONTH: Duration = Duration::from_secs(30 * 86_400);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "shop-sessions".to_owned());
    if dir.starts_with('-') {
        return Err("usage: shop [DIR [ADDR]]".into());
    }
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());

    let store = Store::open(dir)?;
    let visitors = store.container_with("visitors", Policy::new().timeout_mins(20))?;
    let shop = Router::new()
        .route("/", get(page))
        .route("/session", get(session))
        .route("/cart", post(fill_cart))
        .route("/note", post(write_note))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/logout-device", post(logout_device))
        .route("/logout-everywhere", post(logout_everywhere))
        // The cookie is `__Host-session`, and `Secure`: it wants TLS. There is none here, and it works all
        // the same, because Chromium and Firefox trust what comes from the machine they run on. For
        // browsers that do not, such as Safari, there is `CookieSettings::builder().secure(false)`.
        .layer(SessionLayer::new(&store, &visitors));

    let listener = tokio::net::TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?); // a whole line is flushed at once
    let interrupt = async { tokio::signal::ctrl_c().await.expect("ctrl-c can be waited for") };
    axum::serve(listener, shop).with_graceful_shutdown(interrupt).await?;
    store.close()?;
    Ok(())
}

/// The page for people. What a redirect has left for them is shown once. Its forms have a token, so whoever
/// comes for the first time gets a session here.
async fn page(session: Session) -> Result<Html<String>, Error> {
    let flashes: Vec<String> = session.flashes().await?;
    session.add(VISITS, 1)?;
    Ok(Html(View::of(&session).await?.html(&flashes)))
}

/// The session for programs, `null` if there is none. To look is not to visit, and creates nothing.
async fn session(session: Session) -> Result<Json<Option<View>>, Error> {
    Ok(Json(if session.exists()? { Some(View::of(&session).await?) } else { None }))
}

#[derive(Deserialize)]
struct Fruit {
    fruit: String,
}

async fn fill_cart(OwnForm(session, form): OwnForm<Fruit>) -> Result<Redirect, Error> {
    session.append(CART, form.fruit, CART_MAX)?;
    Ok(Redirect::to("/"))
}

#[derive(Deserialize)]
struct Note {
    note: String,
}

async fn write_note(OwnForm(session, form): OwnForm<Note>) -> Result<Redirect, Error> {
    session.insert(NOTE, form.note)?;
    session.flash("The greengrocer will read your note.")?;
    Ok(Redirect::to("/"))
}

#[derive(Deserialize)]
struct Login {
    name: String,
    /// A box that is not ticked is not sent.
    remember: Option<String>,
}

async fn login(
    headers: HeaderMap,
    OwnForm(session, form): OwnForm<Login>,
) -> Result<Redirect, Error> {
    session.login(&form.name, &device(&headers)).await?;
    if form.remember.is_some() {
        session.set_timeout(MONTH)?;
    }
    session.flash("You are logged in.")?;
    Ok(Redirect::to("/"))
}

async fn logout(OwnForm(session, _): OwnForm<()>) -> Result<Redirect, Error> {
    session.logout()?;
    Ok(Redirect::to("/"))
}

#[derive(Deserialize)]
struct Other {
    device: SessionId,
}

async fn logout_device(OwnForm(session, form): OwnForm<Other>) -> Result<Redirect, Error> {
    if session.logout_device(form.device).await? {
        session.flash("That device is logged out.")?;
    }
    Ok(Redirect::to("/"))
}

async fn logout_everywhere(OwnForm(session, _): OwnForm<()>) -> Result<Redirect, Error> {
    session.logout_everywhere().await?;
    Ok(Redirect::to("/"))
}

/// A form that one of the shop's own pages has sent, and the session of who sent it. One that another site
/// has made, or that is older than the last login, is refused.
struct OwnForm<T>(Session, T);

#[derive(Deserialize)]
struct Fields<T> {
    #[serde(default)]
    csrf: String,
    #[serde(flatten)]
    rest: T,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for OwnForm<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let session = Session::load(request.extensions()).await;
        let session = session.map_err(IntoResponse::into_response)?;
        let form = Form::from_request(request, state).await;
        let Form(Fields { csrf, rest }) = form.map_err(IntoResponse::into_response)?;
        match session.is_csrf_token(&csrf).map_err(IntoResponse::into_response)? {
            true => Ok(OwnForm(session, rest)),
            false => Err((StatusCode::FORBIDDEN, Html(document(OUT_OF_DATE))).into_response()),
        }
    }
}

/// What a browser calls itself, in two words: people tell their devices apart by it.
fn device(headers: &HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    // Each of them says that it is all those below it, too.
    let first = |names: &[&'static str]| names.iter().copied().find(|name| agent.contains(name));
    let browser = first(&["Firefox", "Edg", "Chrome", "Safari"]).unwrap_or("A browser");
    let system = first(&["Android", "iPhone", "iPad", "Windows", "Mac", "Linux"]);
    format!("{browser} on {}", system.unwrap_or("some device"))
}

/// What a session holds, and where else its user is logged in.
#[derive(Serialize)]
struct View {
    name: Option<String>,
    devices: Vec<Device>,
    visits: u64,
    cart: Vec<String>,
    note: Option<String>,
    csrf: String,
}

#[derive(Serialize)]
struct Device {
    id: SessionId,
    name: String,
    is_here: bool,
}

impl View {
    async fn of(session: &Session) -> Result<Self, Error> {
        let here = session.id()?;
        let devices = session.devices().await?.into_iter().map(|device| Device {
            id: device.id,
            name: device.note,
            is_here: here == Some(device.id),
        });
        Ok(View {
            name: session.principal()?,
            devices: devices.collect(),
            visits: session.get(VISITS)?.unwrap_or_default(),
            cart: session.get(CART)?.unwrap_or_default(),
            note: session.get(NOTE)?,
            csrf: session.csrf_token()?,
        })
    }
}

// From here on it is HTML, and nothing about sessions but the hidden field of the forms.

impl View {
    fn html(&self, flashes: &[String]) -> String {
        let form = |action: &str, fields: &str| form(action, &self.csrf, fields);
        let note = escape(self.note.as_deref().unwrap_or_default());
        let name = self.name.as_deref().map(escape);
        let mut counts = BTreeMap::<_, usize>::new();
        self.cart.iter().for_each(|fruit| *counts.entry(fruit).or_default() += 1);

        let flashes = each(flashes, |flash| format!("<p>{}</p>", escape(flash)));
        let cart = each(counts, |(fruit, count)| format!("<li>{count} × {}</li>", escape(fruit)));
        let devices = each(&self.devices, |Device { id, name, is_here }| {
            let name = escape(name);
            let end = format!(
                r#"<button name="device" value="{id}" aria-label="Log out {name}">Log out</button>"#
            );
            let end =
                if *is_here { "<i>this one</i>".into() } else { form("/logout-device", &end) };
            format!("<li>{name} {end}</li>")
        });
        let account = match &name {
            None => form("/login", LOGIN),
            Some(_) => [
                format!("<ul>{devices}</ul>"),
                form("/logout", "<button>Log out</button>"),
                form("/logout-everywhere", "<button>Log out everywhere</button>"),
            ]
            .concat(),
        };
        document(&format!(
            r#"<div role="status">{flashes}</div>
<p>Welcome, {name}. Visits: {visits}. <a href="/">Visit again</a></p>
<section><h2>Your cart</h2><ul>{cart}</ul>{fruit}{other}</section>
<section><h2>A note for the greengrocer</h2>{note}</section>
<section><h2>{title}</h2>{account}</section>"#,
            name = name.as_deref().unwrap_or("stranger"),
            visits = self.visits,
            fruit = form("/cart", FRUIT),
            other = form("/cart", OTHER_FRUIT),
            note = form("/note", &NOTE_FIELD.replace("{note}", &note)),
            title = if name.is_some() { "Your devices" } else { "Your account" },
        ))
    }
}

const FRUIT: &str = r#"<button name="fruit" value="apple">Add an apple</button>
<button name="fruit" value="pear">Add a pear</button>"#;

const OTHER_FRUIT: &str = r#"<label>Another fruit <input name="fruit" maxlength="100" required></label>
<button>Add</button>"#;

const NOTE_FIELD: &str = r#"<label>Your note <input name="note" value="{note}" maxlength="1000"></label>
<button>Save</button>"#;

const LOGIN: &str = r#"<label>Your name <input name="name" maxlength="100" autocomplete="username" required></label>
<label class="box"><input type="checkbox" name="remember"> Remember me for a month</label>
<button>Log in</button>"#;

const OUT_OF_DATE: &str = r#"<p>That page was out of date: perhaps you have logged in or out in another tab.
Nothing was changed. <a href="/">Go on from here</a></p>"#;

const STYLE: &str = "
:root { color-scheme: light dark; --leaf: light-dark(#23692f, #8fd19a); --line: light-dark(#d5d9d2, #41473f) }
body { font: 1.05rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1rem }
h1 { color: var(--leaf); margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 0 0 .5rem } a { color: var(--leaf) }
main { columns: 19rem; column-gap: 1rem } main > :not(section) { column-span: all; margin: 0 0 1rem }
section { break-inside: avoid; border: 1px solid var(--line); border-radius: .75rem; padding: 1rem; margin: 0 0 1rem }
ul { margin: 0 0 1rem; padding: 0; list-style: none } ul:empty::after { content: 'Nothing yet.' }
li { display: flex; justify-content: space-between; align-items: center; min-height: 2.3rem } li button { padding: .1rem .7rem }
section > form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; margin: .5rem 0 0 }
section > form:not(:has(label)) { display: inline-flex; margin-right: .5rem }
label { flex: 1 1 11rem } .box { flex-basis: 100% } input:not([type=checkbox]) { display: block; width: 100% }
input, button { font: inherit; box-sizing: border-box; padding: .4rem .7rem; border: 1px solid var(--line); border-radius: .4rem }
button { background: var(--leaf); color: Canvas; border-color: var(--leaf); cursor: pointer }
[role=status]:empty { display: none }
[role=status] p { margin: 0; padding: .5rem 1rem; border-left: .3rem solid var(--leaf); background: light-dark(#e9f4ea, #203023) }
";

fn document(main: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The fruit shop</title>
<style>{STYLE}</style>
<h1>The fruit shop</h1>
<main>{main}</main>
</html>
"#
    )
}

/// A form with the token that [`OwnForm`] looks for.
fn form(action: &str, csrf: &str, fields: &str) -> String {
    format!(
        r#"<form method="post" action="{action}"><input type="hidden" name="csrf" value="{csrf}">{fields}</form>"#
    )
}

fn each<T>(items: impl IntoIterator<Item = T>, line: impl Fn(T) -> String) -> String {
    items.into_iter().map(line).collect()
}

/// Text that a browser shows as it is, between tags and within quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
