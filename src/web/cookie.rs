//! Settings of a cookie, and the `Set-Cookie` headers they come to.
//!
//! A browser that finds something wrong in a `Set-Cookie` header says nothing: it ignores an attribute, or
//! the cookie. So whatever could be ignored is refused here, when the settings are made, and there are no
//! settings of which a browser would make something else than they say.

use std::time::Duration;

use cookie::Cookie;
use cookie::time::OffsetDateTime;
use http::HeaderValue;

use crate::{Error, Time, Token};

/// Browsers ignore a cookie whose name and value have more bytes than this (RFC 6265bis, 5.6) ...
const PAIR_BYTES_MAX: usize = 4_096;
/// ... and an attribute that has more than this.
const ATTRIBUTE_BYTES_MAX: usize = 1_024;
/// What a cookie holds: a token.
const VALUE_BYTES: usize = 43;

const DAY_SECS: u64 = 24 * 60 * 60;
/// Browsers keep no cookie longer (RFC 6265bis, 5.5), so it would be no use to ask for more.
const LIFETIME_MAX: Duration = Duration::from_secs(400 * DAY_SECS);

/// The end of the year 9999, the last that a cookie's date can name.
const LAST_SECOND: u64 = 253_402_300_799;
/// When a cookie expires that is to be removed: long ago by any clock.
const LONG_AGO: u64 = 42_724_740;

/// Whether a cookie comes along with requests that other sites cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// With none of them.
    Strict,
    /// When a visitor follows a link, not with forms, images and scripts.
    Lax,
    /// With all of them. Needs `Secure`.
    None,
}

/// How the cookie with the token looks: name, path, domain, lifetime and flags.
///
/// Settings are valid, or they are not there: [`build`](CookieBuilder::build) refuses what browsers would
/// ignore or misunderstand.
///
/// ```
/// use sessile::web::{CookieSettings, SameSite};
///
/// let cookie = CookieSettings::default(); // what a new program should use
/// assert_eq!(cookie.name(), "__Host-session");
/// assert!(cookie.secure() && cookie.http_only());
/// assert_eq!(cookie.same_site(), Some(SameSite::Lax));
///
/// let cookie = CookieSettings::builder().name("shop").domain(".example.com").lifetime_days(30).build()?;
/// assert_eq!(cookie.domain(), Some(".example.com"));
///
/// let refused = CookieSettings::builder().name("__Host-shop").domain(".example.com").build();
/// assert_eq!(refused.unwrap_err().to_string(), "not a cookie: `__Host-` allows no domain");
/// # Ok::<(), sessile::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieSettings {
    name: String,
    path: Option<String>,
    domain: Option<String>,
    lifetime: Option<Duration>,
    secure: bool,
    http_only: bool,
    same_site: Option<SameSite>,
}

/// What is to become [`CookieSettings`]. See [`CookieSettings::builder`].
#[derive(Clone, Debug)]
pub struct CookieBuilder {
    /// Chosen when the rest is known, if nobody did.
    name: Option<String>,
    rest: CookieSettings,
}

impl CookieSettings {
    /// Settings to begin with: path `/`, no domain, until the browser is closed, `Secure`, `HttpOnly`,
    /// `SameSite=Lax`.
    pub fn builder() -> CookieBuilder {
        let rest = CookieSettings {
            name: String::new(),
            path: Some("/".to_owned()),
            domain: None,
            lifetime: None,
            secure: true,
            http_only: true,
            same_site: Some(SameSite::Lax),
        };
        CookieBuilder { name: None, rest }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path; `None`: the folder of the page that sets it.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// The domain; `None`: the host that sets it, and no other.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// How long a browser keeps it; `None`: until it is closed.
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// Whether it goes over encrypted connections only.
    pub fn secure(&self) -> bool {
        self.secure
    }

    /// Whether scripts are kept from it.
    pub fn http_only(&self) -> bool {
        self.http_only
    }

    /// Whether it comes along with requests that other sites cause; `None`: the browser decides.
    pub fn same_site(&self) -> Option<SameSite> {
        self.same_site
    }

    /// The header that gives a browser the token, for as long as the settings say, or for `lifetime`.
    pub(super) fn set(&self, token: &Token, lifetime: Option<Duration>, now: Time) -> HeaderValue {
        let lifetime = lifetime.map(|lifetime| lifetime.min(LIFETIME_MAX)).or(self.lifetime);
        let end = |lifetime: Duration| now.as_secs().saturating_add(lifetime.as_secs());
        self.header(&token.expose(), lifetime.map(end))
    }

    /// The header that takes it away.
    pub(super) fn remove(&self) -> HeaderValue {
        self.header("deleted", Some(LONG_AGO))
    }

    fn header(&self, value: &str, expires_secs: Option<u64>) -> HeaderValue {
        let mut cookie = Cookie::new(&self.name, value);
        if let Some(path) = &self.path {
            cookie.set_path(path);
        }
        if let Some(domain) = &self.domain {
            // The crate leaves the first dot out.
            cookie.set_domain(format!(".{domain}"));
        }
        if let Some(secs) = expires_secs {
            let end = OffsetDateTime::from_unix_timestamp(secs.min(LAST_SECOND) as i64);
            cookie.set_expires(end.expect("a year has four digits"));
        }
        if self.secure {
            cookie.set_secure(true);
        }
        if self.http_only {
            cookie.set_http_only(true);
        }
        cookie.set_same_site(self.same_site.map(|same_site| match same_site {
            SameSite::Strict => cookie::SameSite::Strict,
            SameSite::Lax => cookie::SameSite::Lax,
            SameSite::None => cookie::SameSite::None,
        }));
        let header = HeaderValue::try_from(cookie.to_string());
        let mut header = header.expect("settings have visible characters of ASCII");
        header.set_sensitive(true);
        header
    }
}

impl Default for CookieSettings {
    fn default() -> Self {
        CookieSettings::builder().build().expect("these fit together")
    }
}

impl CookieBuilder {
    /// The name. It names the field of forms and the segment of URLs, too, where those carry tokens.
    ///
    /// Without this call it is `__Host-session`, where the other settings allow that, and `session`
    /// otherwise. A browser believes a cookie that is called `__Host-` only from the host itself, over an
    /// encrypted connection: no other host of the domain and nobody on the line can put one there.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The path under which the browser sends it. Empty: the folder of the page that sets it.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.rest.path = Some(path.into()).filter(|path| !path.is_empty());
        self
    }

    /// The domain to all hosts of which the browser sends it, as in `.example.com`. Empty: to none but the
    /// host that sets it, which is safer.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.rest.domain = Some(domain.into()).filter(|domain| !domain.is_empty());
        self
    }

    /// How long the browser keeps it, in whole seconds, and at most 400 days. Zero: until it is closed.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.rest.lifetime = Some(lifetime.min(LIFETIME_MAX)).filter(|kept| kept.as_secs() > 0);
        self
    }

    /// The [`lifetime`](CookieBuilder::lifetime) in days.
    pub fn lifetime_days(self, days: u64) -> Self {
        self.lifetime(Duration::from_secs(days.saturating_mul(DAY_SECS)))
    }

    /// Whether it goes over encrypted connections only.
    pub fn secure(mut self, secure: bool) -> Self {
        self.rest.secure = secure;
        self
    }

    /// Whether scripts are kept from it.
    pub fn http_only(mut self, http_only: bool) -> Self {
        self.rest.http_only = http_only;
        self
    }

    /// Whether it comes along with requests that other sites cause; `None`: the browser decides. Mind that
    /// [`SameSite::None`] is something else.
    pub fn same_site(mut self, same_site: impl Into<Option<SameSite>>) -> Self {
        self.rest.same_site = same_site.into();
        self
    }

    /// The settings.
    ///
    /// # Errors
    ///
    /// [`Error::Cookie`], which says what is wrong, if name, path or domain have characters or a form that
    /// they must not have, or if browsers would ignore the cookie: `__Host-` needs `Secure`, the path `/`
    /// and no domain; `__Secure-` and `SameSite=None` need `Secure`.
    pub fn build(self) -> Result<CookieSettings, Error> {
        let CookieBuilder { name, rest } = self;
        let is_bound_to_host = rest.path() == Some("/") && rest.domain.is_none();
        let default = if rest.secure && is_bound_to_host { "__Host-session" } else { "session" };
        let settings = CookieSettings { name: name.unwrap_or_else(|| default.to_owned()), ..rest };
        match settings.fault(is_bound_to_host) {
            Some(reason) => Err(Error::Cookie { reason }),
            None => Ok(settings),
        }
    }
}

impl CookieSettings {
    /// What is wrong with the settings.
    fn fault(&self, is_bound_to_host: bool) -> Option<String> {
        // Browsers ask for the prefixes in any case of letters.
        let begins = |prefix: &str| {
            self.name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
        };
        let rule = |reason: &str| Some(reason.to_owned());
        name_fault(&self.name)
            .or_else(|| self.path().and_then(path_fault))
            .or_else(|| self.domain().and_then(domain_fault))
            .or_else(|| match self.secure {
                false if begins("__Host-") => rule("`__Host-` needs Secure"),
                false if begins("__Secure-") => rule("`__Secure-` needs Secure"),
                false if self.same_site == Some(SameSite::None) => {
                    rule("SameSite=None needs Secure")
                }
                _ if !begins("__Host-") || is_bound_to_host => None,
                _ if self.domain.is_some() => rule("`__Host-` allows no domain"),
                _ => rule("`__Host-` needs the path `/`"),
            })
    }
}

/// The tokens of RFC 6265 but for `&`, which would have to be escaped wherever a URL is shown.
fn name_fault(name: &str) -> Option<String> {
    let is_separator = |c| "()<>@,;:\\\"/[]?={}&".contains(c);
    match name.chars().find(|c| !c.is_ascii_graphic() || is_separator(*c)) {
        Some(c) => Some(format!("a name has no {c:?}")),
        None if name.is_empty() => Some("a name has a letter at least".to_owned()),
        None if name.len() > PAIR_BYTES_MAX - VALUE_BYTES => {
            Some(format!("a name has at most {} bytes", PAIR_BYTES_MAX - VALUE_BYTES))
        }
        None => None,
    }
}

/// RFC 6265 would allow more characters, the original did not.
fn path_fault(path: &str) -> Option<String> {
    match path.chars().find(|c| !c.is_ascii_graphic() || ";,<>&".contains(*c)) {
        Some(c) => Some(format!("a path has no {c:?}")),
        None if !path.starts_with('/') => Some("a path begins with `/`".to_owned()),
        None => attribute_fault("path", path),
    }
}

/// Host names, with or without a dot in front, which browsers ignore.
fn domain_fault(domain: &str) -> Option<String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let host = domain.strip_prefix('.').unwrap_or(domain);
    if let Some(c) = domain.chars().find(|c| !is_allowed(*c)) {
        Some(format!("a domain has no {c:?}"))
    } else if domain.matches('.').count() < 2 {
        // One dot is what whole registries have. The first dot means nothing to browsers; whoever
        // writes it has thought of all the hosts that get the cookie.
        Some("a domain has two dots, as in `.example.com` or `www.example.com`".to_owned())
    } else if !host.split('.').all(is_label) {
        Some("a domain has letters, digits and hyphens between its dots".to_owned())
    } else {
        attribute_fault("domain", domain)
    }
}

fn attribute_fault(name: &str, value: &str) -> Option<String> {
    let is_too_long = value.len() > ATTRIBUTE_BYTES_MAX;
    is_too_long.then(|| format!("a {name} has at most {ATTRIBUTE_BYTES_MAX} bytes"))
}
