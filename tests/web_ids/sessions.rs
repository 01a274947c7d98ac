//! The session of a request, and tokens that mean none.

use sessile::web::{Namespace, RequestIds, RequestSessions, UnknownToken, UrlStyle};
use sessile::{Container, Error, Key, ManualClock, Options, Policy, Store, Time, Token};

use super::{ALL, Asked, ids, say};

struct Site {
    clock: ManualClock,
    store: Store,
    visitors: Container,
    /// Another container of the store, which has nothing to do with the first.
    elsewhere: Container,
}

impl Site {
    fn new() -> Self {
        let clock = ManualClock::new(Time::from_secs(1_000));
        let store = Options::new().clock(clock.clone()).sweep_every(None).memory().unwrap();
        let policy = Policy::new().timeout_mins(20);
        let visitors = store.container_with("visitors", policy.clone()).unwrap();
        let elsewhere = store.container_with("elsewhere", policy).unwrap();
        Site { clock, store, visitors, elsewhere }
    }

    fn sessions(&self) -> RequestSessions {
        RequestSessions::new(&self.visitors)
    }

    /// A token with a session in a container.
    fn visitor(&self, container: &Container) -> Token {
        let token = Token::random().unwrap();
        self.store.transact(|txn| txn.create(container, &token)?.insert("name", "Ada")).unwrap();
        token
    }

    fn keys(&self) -> Vec<Key> {
        self.store.begin().unwrap().keys(&self.visitors).unwrap().collect::<Result<_, _>>().unwrap()
    }
}

/// Why a token means no session.
#[derive(Clone, Copy, Debug)]
enum Stranger {
    /// Somebody made it up.
    Minted,
    /// The same bits for everybody.
    Chosen,
    Expired,
    Ended,
    /// All sessions of its principal were ended.
    EndedWithOthers,
    Rotated,
    /// It has a session in a container that has nothing to do with this one.
    Foreign,
    /// No token at all.
    Nonsense,
    Empty,
}

const STRANGERS: [Stranger; 9] = [
    Stranger::Minted,
    Stranger::Chosen,
    Stranger::Expired,
    Stranger::Ended,
    Stranger::EndedWithOthers,
    Stranger::Rotated,
    Stranger::Foreign,
    Stranger::Nonsense,
    Stranger::Empty,
];

impl Stranger {
    /// The text that the visitor comes with.
    fn text(self, site: &Site) -> String {
        let store = &site.store;
        let token = match self {
            Stranger::Minted => Token::random().unwrap(),
            Stranger::Chosen => "A".repeat(43).parse().unwrap(),
            Stranger::Expired => {
                let token = site.visitor(&site.visitors);
                site.clock.advance_secs(3_600);
                token
            }
            Stranger::Ended => {
                let token = site.visitor(&site.visitors);
                store.transact(|txn| txn.remove(&site.visitors, &token)).unwrap();
                token
            }
            Stranger::EndedWithOthers => {
                let token = Token::random().unwrap();
                store.transact(|txn| txn.create(&site.visitors, &token)?.bind("ada", "")).unwrap();
                store.transact(|txn| txn.end_all_of(&site.visitors, "ada")).unwrap();
                token
            }
            Stranger::Rotated => {
                let (token, fresh) = (site.visitor(&site.visitors), Token::random().unwrap());
                let rotate = |token| {
                    store.transact(|txn| {
                        txn.get(&site.visitors, token)?
                            .ok_or(Error::Ended)?
                            .rotate(&fresh)
                            .map(drop)
                    })
                };
                rotate(&token).unwrap();
                token
            }
            Stranger::Foreign => site.visitor(&site.elsewhere),
            Stranger::Nonsense => return "nonsense".to_owned(),
            Stranger::Empty => return String::new(),
        };
        token.expose()
    }

    fn comes(text: &str, namespace: Namespace) -> RequestIds {
        let asked = match namespace {
            Namespace::Cookies => Asked::new().cookie(format!("session={text}")),
            Namespace::Form => Asked::new().form(format!("session={text}")),
            Namespace::Url => Asked::new().path(format!("/session/{text}/page")),
        };
        asked.read(&ids(ALL))
    }
}

/// Session fixation: whoever comes with a token that means no session does not get one under it.
#[test]
fn a_token_that_means_no_session_is_never_adopted() {
    let mut cases = 0;
    for stranger in STRANGERS {
        for namespace in ALL {
            let site = Site::new();
            let text = stranger.text(&site);
            let planted: Option<Token> = text.parse().ok();
            let (sessions, before) = (site.sessions(), site.keys());
            let name = format!("{stranger:?} in {namespace:?}");

            // Nothing comes of looking.
            let mut request = Stranger::comes(&text, namespace);
            site.store
                .transact(|txn| {
                    assert!(sessions.session(txn, &mut request, false)?.is_none(), "{name}");
                    assert!(!sessions.has(txn, &request)?, "{name}");
                    assert!(!sessions.clear(txn, &request)?, "{name}");
                    Ok(())
                })
                .unwrap();
            assert_eq!(request.token(), planted.as_ref(), "{name}");
            assert!(request.set_cookies(Time::from_secs(0)).is_empty(), "{name}");
            assert_eq!(site.keys(), before, "{name}");
            cases += 1;

            // Who gets a session gets it under another token, which the cookie hands out.
            let created = site.store.transact(|txn| {
                let session = sessions.session(txn, &mut request, true)?.expect("created");
                session.insert("cart", ["tea"])?;
                Ok(session.key().clone())
            });
            let created = created.unwrap().value;
            let token = request.token().unwrap().clone();
            assert_eq!(token.key(), created, "{name}");
            assert!(request.is_new().unwrap(), "{name}");
            assert_ne!(Some(&token), planted.as_ref(), "{name}");
            let cookie = request.set_cookies(Time::from_secs(0)).remove(0);
            assert!(cookie.to_str().unwrap().contains(&token.expose()), "{name}");
            let txn = site.store.begin().unwrap();
            assert_eq!(site.keys().len(), before.len() + 1, "{name}");
            if let Some(planted) = planted {
                assert!(txn.peek(&site.visitors, &planted).unwrap().is_none(), "{name}");
            }
            cases += 1;

            // The old one still opens nothing, and the new one does.
            let mut attacker = Stranger::comes(&text, namespace);
            assert!(sessions.session(&txn, &mut attacker, false).unwrap().is_none(), "{name}");
            let mut visitor = Stranger::comes(&token.expose(), namespace);
            let found = sessions.session(&txn, &mut visitor, false).unwrap().unwrap();
            assert_eq!(found.get::<Vec<String>>("cart").unwrap().unwrap(), ["tea"], "{name}");
            cases += 1;
        }
    }
    say(&format!("{cases} attempts to fix a session"));
    assert!(cases >= 60, "{cases}");
}

/// The original adopted them, all but those that were given up for others.
#[test]
fn adopting_is_to_be_asked_for() {
    for stranger in STRANGERS {
        let site = Site::new();
        let text = stranger.text(&site);
        let sessions = site.sessions().unknown_token(UnknownToken::Adopt);
        let mut request = Stranger::comes(&text, Namespace::Cookies);
        let txn = site.store.begin().unwrap();
        let session = sessions.session(&txn, &mut request, true).unwrap().unwrap();
        let planted: Option<Token> = text.parse().ok();
        let adopted = planted.is_some_and(|planted| planted.key() == *session.key());
        let can_be = !matches!(stranger, Stranger::Rotated | Stranger::Nonsense | Stranger::Empty);
        assert_eq!(adopted, can_be, "{stranger:?}");
        assert_eq!(request.set_cookies(Time::from_secs(0)).is_empty(), can_be, "{stranger:?}");
    }
}

/// At no moment do both tokens mean the session, or none.
#[test]
fn a_login_leaves_the_planted_token_behind() {
    let site = Site::new();
    let sessions = site.sessions();
    // An attacker's own session, under a token that a victim was made to use.
    let planted = site.visitor(&site.visitors);
    let mut login = Asked::carrying(&planted, Namespace::Cookies).read(&ids(ALL));
    let fresh = Token::random().unwrap();
    let txn = site.store.begin().unwrap();
    let session = sessions.session(&txn, &mut login, true).unwrap().unwrap();
    session.rotate(&fresh).unwrap().insert("user", "ada").unwrap();
    login.replace(fresh.clone());
    let means = |token: &Token| {
        let mut request = Asked::carrying(token, Namespace::Cookies).read(&ids(ALL));
        let txn = site.store.begin().unwrap();
        sessions.session(&txn, &mut request, false).unwrap().is_some()
    };
    assert_eq!((means(&planted), means(&fresh)), (true, false));
    txn.commit().unwrap();
    assert_eq!((means(&planted), means(&fresh)), (false, true));
    let cookie = login.set_cookies(Time::from_secs(0)).remove(0);
    assert!(cookie.to_str().unwrap().contains(&fresh.expose()));
}

/// What ended in this request does not go on under its token.
#[test]
fn who_ends_a_session_begins_another() {
    let site = Site::new();
    let sessions = site.sessions();
    let token = site.visitor(&site.visitors);
    let mut request = Asked::carrying(&token, Namespace::Cookies).read(&ids(ALL));
    site.store
        .transact(|txn| {
            sessions.session(txn, &mut request, false)?.expect("there is one").invalidate()?;
            assert!(!sessions.has(txn, &request)?);
            let session = sessions.session(txn, &mut request, true)?.expect("created");
            assert!(session.is_empty()? && *session.key() != token.key());
            Ok(())
        })
        .unwrap();
    assert_eq!(site.keys(), [request.token().unwrap().key()]);
}

#[test]
fn a_token_made_for_the_request_is_the_sessions() {
    let site = Site::new();
    let mut request = Asked::new().read(&ids(ALL));
    let url = request.encode_url("/", UrlStyle::Query, true).unwrap();
    let txn = site.store.begin().unwrap();
    let session = site.sessions().session(&txn, &mut request, true).unwrap().unwrap();
    assert_eq!(*session.key(), request.token().unwrap().key());
    assert_eq!(url, request.encode_url("/", UrlStyle::Query, false).unwrap());
}

/// A closure that runs again finds the token that its first run made.
#[test]
fn attempts_share_a_token() {
    let site = Site::new();
    let sessions = site.sessions();
    let mut request = Asked::new().cookie("session=nonsense").read(&ids(ALL));
    let mut attempts = Vec::new();
    let report = site.store.transact(|txn| {
        let session = sessions.session(txn, &mut request, true)?.expect("created");
        attempts.push(session.key().clone());
        session.insert("visits", 1)?;
        let taken = site.visitor(&site.elsewhere);
        let rival = txn.get(&site.elsewhere, &taken)?;
        assert!(rival.is_none(), "it came after the snapshot");
        if attempts.len() == 1 { txn.create(&site.elsewhere, &taken).map(drop) } else { Ok(()) }
    });
    assert_eq!(report.unwrap().attempts, 2);
    assert_eq!(attempts[0], attempts[1]);
    assert_eq!(site.keys(), [request.token().unwrap().key()]);
}

/// Several containers behind one token: who is known in one is known in all.
#[test]
fn containers_beside_each_other_share_tokens() {
    let site = Site::new();
    let alone = RequestSessions::new(&site.elsewhere);
    let beside = alone.clone().beside(&site.visitors);
    let known = site.visitor(&site.visitors);
    let ask = |sessions: &RequestSessions, token: &Token| {
        let mut request = Asked::carrying(token, Namespace::Cookies).read(&ids(ALL));
        let txn = site.store.begin().unwrap();
        let session = sessions.session(&txn, &mut request, true).unwrap().unwrap();
        *session.key() == token.key()
    };
    assert!(ask(&beside, &known));
    assert!(!ask(&alone, &known));
    assert!(!ask(&beside, &Token::random().unwrap()));
    // Not by the key that was given up, however long it leads to the session.
    let policy = Policy::new().timeout_mins(20).rotation_grace_secs(60);
    site.store.transact(|txn| txn.set_policy(&site.visitors, policy.clone())).unwrap();
    let fresh = Token::random().unwrap();
    site.store
        .transact(|txn| {
            txn.get(&site.visitors, &known)?.ok_or(Error::Ended)?.rotate(&fresh).map(drop)
        })
        .unwrap();
    assert!(site.store.begin().unwrap().peek(&site.visitors, &known).unwrap().is_some(), "grace");
    assert!(!ask(&beside, &known));
    assert!(ask(&beside, &fresh));
    // Nor who was ended there.
    site.store.transact(|txn| txn.remove(&site.visitors, &fresh)).unwrap();
    assert!(!ask(&beside, &fresh));
}

#[test]
fn asking_is_an_access_and_a_key_is_a_right_of_its_own() {
    let site = Site::new();
    let sessions = site.sessions();
    let token = site.visitor(&site.visitors);
    let request = Asked::carrying(&token, Namespace::Cookies).read(&ids(ALL));
    for _ in 0..4 {
        site.clock.advance_secs(19 * 60);
        assert!(site.store.transact(|txn| sessions.has(txn, &request)).unwrap().value);
    }
    // By any key, and none is made.
    let txn = site.store.begin().unwrap();
    let by_key = sessions.by_key();
    assert!(by_key.get(&txn, &token).unwrap().is_some());
    assert!(by_key.get(&txn, "").unwrap().is_none());
    assert!(by_key.get(&txn, &Token::random().unwrap()).unwrap().is_none());
    assert_eq!(txn.len(&site.visitors).unwrap(), 1);
    drop(txn);

    site.clock.advance_secs(19 * 60);
    let cleared = site.store.transact(|txn| sessions.clear(txn, &request)).unwrap();
    assert!(cleared.value);
    site.clock.advance_secs(19 * 60);
    let txn = site.store.begin().unwrap();
    assert!(txn.peek(&site.visitors, &token).unwrap().unwrap().is_empty().unwrap());
    assert_eq!(site.keys(), [token.key()]);
}

/// A full container refuses the session, and the request keeps what it came with.
#[test]
fn a_full_container_hands_out_nothing() {
    let site = Site::new();
    let full = site.store.container_with("full", Policy::new().limit(1)).unwrap();
    site.visitor(&full);
    let unknown = Token::random().unwrap();
    let mut request = Asked::carrying(&unknown, Namespace::Cookies).read(&ids(ALL));
    let txn = site.store.begin().unwrap();
    let refused = RequestSessions::new(&full).session(&txn, &mut request, true);
    assert!(matches!(refused, Err(Error::Limit { .. })));
    assert_eq!(request.token(), Some(&unknown));
    assert!(request.set_cookies(Time::from_secs(0)).is_empty());
}

/// What a program prints of a request shows nobody's token.
#[test]
fn requests_are_shown_without_their_tokens() {
    let token = Token::random().unwrap();
    let text = token.expose();
    for namespace in ALL {
        for settings in [ids(ALL), ids([Namespace::Cookies])] {
            let mut request = Asked::carrying(&token, namespace).read(&settings);
            request.renew_cookie();
            let shown = format!("{request:?} {request:#?} {settings:?}");
            assert!(!shown.contains(&text), "{shown}");
        }
    }
    let request = Asked::carrying(&token, Namespace::Cookies).read(&ids(ALL));
    assert!(format!("{request:?}").contains(&token.key().fingerprint()));
}
