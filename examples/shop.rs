//! A small shop that keeps its visitors' carts: sessile behind axum.
//!
//! ```text
//! cargo run --example shop -- DIR [ADDR]        then open http://127.0.0.1:8080 in two tabs
//! ```
//!
//! Both tabs write to one session, at the same time if they like, and nothing is lost. Three things
//! make it so, and they are all there is to learn from this file:
//!
//! - **Writes that merge.** A visit is *added* to a counter and a fruit *appended* to the cart:
//!   neither reads what it changes, so neither can conflict. The note is written blindly: of two,
//!   the later one stays.
//! - **[`Store::transact_async`]** runs, commits, and on a conflict runs again on what is there by
//!   then. It awaits the commit, so that no thread of the executor waits for a disk.
//! - **A cookie is a claim.** It is looked up and never adopted: whoever brings a token that means
//!   no session, because it expired, was logged out in another tab, or was made up, is a new
//!   visitor. A login gives the session a new token, in one commit ([`Session::rotate`]): one that
//!   somebody planted before is worth nothing, and what another tab writes meanwhile is kept.
//!
//! A login also [binds](Session::bind) the session to its user, for a list of devices and for "log out
//! everywhere", and leaves a word that the next page [shows once](Session::flash). Nobody is asked for a
//! password: a shop of yours does that first.
//!
//! Reading creates nothing: a crawler leaves no session behind. The first thing worth keeping, a
//! fruit, a note or a name, makes one, and from then on visits are counted.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program may talk")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::env;
use std::time::Duration;

use axum::extract::{Form, FromRequestParts, State};
use axum::http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE, USER_AGENT};
use axum::http::{HeaderValue, StatusCode, request};
use axum::response::{Html, IntoResponse, IntoResponseParts, Redirect, Response, ResponseParts};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sessile::{Attribute, Container, Error, Policy, Session, Store, Token, Transaction};

const CART: Attribute<Vec<String>> = Attribute::new("cart");
const NOTE: Attribute<String> = Attribute::new("note");
const VISITS: Attribute<u64> = Attribute::new("visits");

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
    let app = Router::new()
        .route("/", get(page))
        .route("/session", get(session))
        .route("/cart", post(fill_cart))
        .route("/note", post(write_note))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/logout-everywhere", post(logout_everywhere))
        .with_state(Shop { store: store.clone(), visitors });

    let listener = tokio::net::TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?); // a whole line is flushed at once
    let interrupt = async { tokio::signal::ctrl_c().await.expect("ctrl-c can be waited for") };
    axum::serve(listener, app).with_graceful_shutdown(interrupt).await?;
    store.close()?;
    Ok(())
}

#[derive(Clone)]
struct Shop {
    store: Store,
    visitors: Container,
}

impl Shop {
    /// More patient than the store, which makes four attempts at once: a login rests on what other
    /// tabs may be writing all the while.
    async fn transact<T>(
        &self,
        work: impl Fn(&Transaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for pause_ms in [2, 4, 8, 16, 32] {
            match self.store.transact_async(&work).await {
                Err(Error::Conflict(_)) => {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
                done => return done.map(|report| report.value),
            }
        }
        Ok(self.store.transact_async(&work).await?.value)
    }

    /// The session that a visitor's cookie means, if it means one.
    fn find(&self, txn: &Transaction, visitor: &Visitor) -> Result<Option<Session>, Error> {
        match &visitor.token {
            Some(token) => txn.get(&self.visitors, token),
            None => Ok(None),
        }
    }

    /// What is in a session, and where else its user is logged in.
    fn view(&self, txn: &Transaction, session: &Session) -> Result<View, Error> {
        let name = session.principal()?;
        let devices = match &name {
            Some(name) => txn.sessions_of(&self.visitors, name)?,
            None => Vec::new(),
        };
        Ok(View {
            name,
            devices: devices.into_iter().map(|device| device.note).collect(),
            visits: session.get(VISITS)?.unwrap_or_default(),
            cart: session.get(CART)?.unwrap_or_default(),
            note: session.get(NOTE)?,
            flashes: Vec::new(),
        })
    }

    /// Writes to the visitor's session, or to a new one if there is none.
    async fn write(
        &self,
        visitor: &Visitor,
        work: impl Fn(&Session) -> Result<(), Error>,
    ) -> Result<(Cookie, Redirect), Trouble> {
        let cookie = self.transact(|txn| {
            if let Some(session) = self.find(txn, visitor)? {
                work(&session)?;
                return Ok(Cookie::Keep);
            }
            let token = Token::random()?;
            work(&txn.create(&self.visitors, &token)?)?;
            Ok(Cookie::Set(token))
        });
        Ok((cookie.await?, Redirect::to("/")))
    }
}

/// The page for people. Those who have a session get their visit counted.
async fn page(
    State(shop): State<Shop>,
    visitor: Visitor,
) -> Result<(Cookie, Html<String>), Trouble> {
    let view = shop.transact(|txn| {
        let Some(session) = shop.find(txn, &visitor)? else { return Ok(None) };
        session.add(VISITS, 1)?;
        let flashes = session.flashes()?;
        Ok(Some(View { flashes, ..shop.view(txn, &session)? }))
    });
    let view = view.await?;
    Ok((visitor.cookie(&view), Html(view.unwrap_or_default().html())))
}

/// The session for programs, `null` if there is none. To look is not to visit.
async fn session(
    State(shop): State<Shop>,
    visitor: Visitor,
) -> Result<(Cookie, Json<Option<View>>), Trouble> {
    let view = shop.transact(|txn| {
        let session = shop.find(txn, &visitor)?;
        session.map(|session| shop.view(txn, &session)).transpose()
    });
    let view = view.await?;
    Ok((visitor.cookie(&view), Json(view)))
}

#[derive(Deserialize)]
struct Fruit {
    fruit: String,
}

async fn fill_cart(
    State(shop): State<Shop>,
    visitor: Visitor,
    Form(Fruit { fruit }): Form<Fruit>,
) -> Result<(Cookie, Redirect), Trouble> {
    const CART_MAX: usize = 1_000;
    shop.write(&visitor, |session| session.append(CART, &fruit, CART_MAX)).await
}

#[derive(Deserialize)]
struct Note {
    note: String,
}

async fn write_note(
    State(shop): State<Shop>,
    visitor: Visitor,
    Form(Note { note }): Form<Note>,
) -> Result<(Cookie, Redirect), Trouble> {
    shop.write(&visitor, |session| session.insert(NOTE, &note)).await
}

#[derive(Deserialize)]
struct Login {
    name: String,
}

/// The visitor becomes a user: the session goes on under a new token, and the old one is worth nothing.
async fn login(
    State(shop): State<Shop>,
    visitor: Visitor,
    Form(Login { name }): Form<Login>,
) -> Result<(Cookie, Redirect), Trouble> {
    let token = shop.transact(|txn| {
        let token = Token::random()?;
        let session = match shop.find(txn, &visitor)? {
            Some(session) => session.rotate(&token)?,
            None => txn.create(&shop.visitors, &token)?,
        };
        session.bind(&name, &visitor.device)?;
        session.flash("You are logged in.")?;
        Ok(token)
    });
    Ok((Cookie::Set(token.await?), Redirect::to("/")))
}

async fn logout(State(shop): State<Shop>, visitor: Visitor) -> Result<(Cookie, Redirect), Trouble> {
    if let Some(token) = &visitor.token {
        shop.transact(|txn| txn.remove(&shop.visitors, token)).await?;
    }
    Ok((Cookie::Remove, Redirect::to("/")))
}

/// Ends every session of the user, those that began a moment ago on another device too.
async fn logout_everywhere(
    State(shop): State<Shop>,
    visitor: Visitor,
) -> Result<(Cookie, Redirect), Trouble> {
    let done = shop.transact(|txn| {
        let Some(session) = shop.find(txn, &visitor)? else { return Ok(()) };
        match session.principal()? {
            Some(name) => txn.end_all_of(&shop.visitors, &name),
            None => session.invalidate(),
        }
    });
    done.await?;
    Ok((Cookie::Remove, Redirect::to("/")))
}

/// What the request claims about who sent it.
struct Visitor {
    /// Whether there was a session cookie at all, be it nonsense.
    claims: bool,
    token: Option<Token>,
    /// What the browser calls itself, for people to tell their devices apart.
    device: String,
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Infallible> {
        let cookies = parts.headers.get_all(COOKIE).iter();
        let values: Vec<&str> = cookies
            .filter_map(|header| header.to_str().ok())
            .flat_map(|header| header.split(';'))
            .filter_map(|cookie| cookie.trim().strip_prefix("session="))
            .collect();
        let token = values.iter().find_map(|value| value.parse().ok());
        let agent = parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
        let device = agent.unwrap_or("a device").chars().take(100).collect();
        Ok(Visitor { claims: !values.is_empty(), token, device })
    }
}

impl Visitor {
    /// A claim that turned out to mean nothing is taken away without a fuss.
    fn cookie(&self, found: &Option<View>) -> Cookie {
        if self.claims && found.is_none() { Cookie::Remove } else { Cookie::Keep }
    }
}

/// What becomes of the visitor's cookie. Behind TLS, add `Secure`.
enum Cookie {
    Keep,
    Set(Token),
    Remove,
}

impl IntoResponseParts for Cookie {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Infallible> {
        const ATTRIBUTES: &str = "HttpOnly; SameSite=Lax; Path=/";
        let cookie = match self {
            Cookie::Keep => None,
            Cookie::Set(token) => Some(format!("session={}; {ATTRIBUTES}", token.expose())),
            Cookie::Remove => Some(format!("session=; {ATTRIBUTES}; Max-Age=0")),
        };
        let headers = response.headers_mut();
        if let Some(cookie) = cookie {
            let cookie = cookie.try_into().expect("base64url is plain ASCII");
            headers.insert(SET_COOKIE, cookie);
        }
        // It was made for one visitor.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

/// What visitors are told when the store cannot do what they asked: not much.
struct Trouble(Error);

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble(error)
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let (status, text) = match &self.0 {
            Error::Busy { .. } | Error::Conflict(_) | Error::Ended => {
                (StatusCode::SERVICE_UNAVAILABLE, "We are very busy. Please try again.")
            }
            Error::Limit { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "That is more than we keep."),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong."),
        };
        eprintln!("{status}: {}", self.0); // holds no token and no value
        (status, text).into_response()
    }
}

/// What a session holds.
#[derive(Default, Serialize)]
struct View {
    name: Option<String>,
    devices: Vec<String>,
    visits: u64,
    cart: Vec<String>,
    note: Option<String>,
    /// What is shown once, and by the page only.
    #[serde(skip)]
    flashes: Vec<String>,
}

impl View {
    fn html(&self) -> String {
        let name = escape(self.name.as_deref().unwrap_or("stranger"));
        let note = escape(self.note.as_deref().unwrap_or_default());
        let visits = self.visits;
        let flashes: String =
            self.flashes.iter().map(|flash| format!("<p><b>{}</b></p>", escape(flash))).collect();
        let devices: String =
            self.devices.iter().map(|device| format!("<li>{}</li>", escape(device))).collect();
        let mut counts = BTreeMap::<_, usize>::new();
        for fruit in &self.cart {
            *counts.entry(fruit).or_default() += 1;
        }
        let cart: String = counts
            .iter()
            .map(|(fruit, count)| format!("<li>{count} × {}</li>", escape(fruit)))
            .collect();
        format!(
            r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>The fruit shop</title>
<style>body {{ font: 1.1em/1.6 sans-serif; max-width: 30em; margin: 2em auto; padding: 0 1em }}</style>
<h1>The fruit shop</h1>
{flashes}<p>Welcome, {name}. Visits: {visits}. <a href="/">Visit again</a></p>
<h2>Your cart</h2>
<ul>{cart}</ul>
<form method="post" action="/cart">
  <button name="fruit" value="apple">Add an apple</button>
  <button name="fruit" value="pear">Add a pear</button>
</form>
<form method="post" action="/cart">
  <input name="fruit" placeholder="Another fruit" maxlength="100" required> <button>Add</button>
</form>
<h2>A note for the greengrocer</h2>
<form method="post" action="/note">
  <input name="note" value="{note}" maxlength="1000"> <button>Write</button>
</form>
<h2>Your account</h2>
<ul>{devices}</ul>
<form method="post" action="/login">
  <input name="name" placeholder="Your name" maxlength="100" required> <button>Log in</button>
</form>
<form method="post" action="/logout"><button>Log out and forget me</button></form>
<form method="post" action="/logout-everywhere"><button>Log out everywhere</button></form>
</html>
"#
        )
    }
}

/// Text that a browser shows as it is, between tags and within quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
