//! What others may watch: spans and events for `tracing`, figures for `metrics`.
//!
//! Both are features, and off by default; without them everything here is empty. The store calls it where
//! something begins and ends, and knows neither crate. [`docs::observability`](crate::docs::observability)
//! lists the names; they are an interface, and change like one.
//!
//! Nothing that a visitor carries or has written is shown: no token, no key, no value. Names of containers
//! and attributes are, because they are the application's own. Which session it was, by its fingerprint,
//! stands in spans and events only if [`Options::trace_sessions`](crate::Options) says so, and never in
//! a figure: who keeps figures would keep one for each visitor.

#![cfg_attr(
    not(all(feature = "tracing", feature = "metrics")),
    allow(unused_variables, reason = "what is not watched has nothing to be shown")
)]

use crate::engine;
use crate::error::Error;
use crate::model::container::Place;
use crate::store::backup::Backup;
use crate::store::commit::Intent;
use crate::store::core::Core;
use crate::store::courier::EndBatch;
use crate::store::events::Event;
use crate::store::housekeeper::Swept;
use crate::store::outcome::Report;

/// Something under way, from its beginning to its end.
pub(crate) struct Watch {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
    /// Elapsed time at the beginning.
    #[cfg(feature = "metrics")]
    since: std::time::Duration,
}

/// A session is being read for a transaction.
pub(crate) fn load(core: &Core, place: &Place) -> Watch {
    Watch {
        #[cfg(feature = "tracing")]
        span: {
            let span = tracing::debug_span!(
                target: "sessile",
                "sessile.load",
                session.id = tracing::field::Empty,
                sessile.outcome = tracing::field::Empty,
                "error.type" = tracing::field::Empty,
            );
            name_session(core, &span, place);
            span
        },
        #[cfg(feature = "metrics")]
        since: core.clock.elapsed(),
    }
}

/// A transaction is being committed.
pub(crate) fn commit(core: &Core, intent: &Intent) -> Watch {
    Watch {
        #[cfg(feature = "tracing")]
        span: {
            let lives = || intent.drafts.values().flat_map(|draft| &draft.lives);
            let span = tracing::debug_span!(
                target: "sessile",
                "sessile.commit",
                session.id = tracing::field::Empty,
                sessile.keys_changed =
                    lives().map(|life| life.changes.writes.len() as u64).sum::<u64>(),
                sessile.outcome = tracing::field::Empty,
                "error.type" = tracing::field::Empty,
            );
            // A commit of several sessions is nobody's.
            if intent.drafts.len() == 1 {
                intent.drafts.keys().for_each(|place| name_session(core, &span, place));
            }
            span
        },
        #[cfg(feature = "metrics")]
        since: core.clock.elapsed(),
    }
}

/// What has expired is being ended.
pub(crate) fn sweep(core: &Core) -> Watch {
    #[cfg(feature = "metrics")]
    if let Ok(first) = core.overdue(core.now()) {
        let lag = first.map_or(std::time::Duration::ZERO, |first| core.now().since(first));
        metrics::gauge!("sessile_sweep_lag_seconds").set(lag.as_secs_f64());
    }
    Watch {
        #[cfg(feature = "tracing")]
        span: tracing::debug_span!(
            target: "sessile",
            "sessile.sweep",
            sessile.examined = tracing::field::Empty,
            sessile.ended = tracing::field::Empty,
            "error.type" = tracing::field::Empty,
        ),
        #[cfg(feature = "metrics")]
        since: core.clock.elapsed(),
    }
}

/// A backup is being made.
pub(crate) fn backup(core: &Core) -> Watch {
    Watch {
        #[cfg(feature = "tracing")]
        span: tracing::debug_span!(
            target: "sessile",
            "sessile.backup",
            sessile.revision = tracing::field::Empty,
            sessile.sessions = tracing::field::Empty,
            sessile.bytes = tracing::field::Empty,
            "error.type" = tracing::field::Empty,
        ),
        #[cfg(feature = "metrics")]
        since: core.clock.elapsed(),
    }
}

impl Watch {
    /// The session was read, or there is none.
    pub(crate) fn loaded<T>(self, core: &Core, read: &Result<Option<T>, Error>) {
        #[cfg(feature = "tracing")]
        {
            let outcome = match read {
                Ok(Some(_)) => "found",
                Ok(None) => "absent",
                Err(error) => failed(&self.span, error),
            };
            self.span.record("sessile.outcome", outcome);
        }
        #[cfg(feature = "metrics")]
        metrics::histogram!("sessile_load_duration_seconds").record(self.elapsed(core));
    }

    /// The verdict is there. Who runs the transaction `again` if it was refused says so before.
    pub(crate) fn committed(self, core: &Core, verdict: &Result<Report, Error>, again: bool) {
        let outcome = match verdict {
            Ok(report) if report.merged.is_empty() => "clean",
            Ok(_) => "merged",
            Err(error) if error.is_retryable() && again => "retried",
            Err(Error::Conflict(_) | Error::Limit { .. } | Error::SnapshotTooOld { .. }) => {
                "rejected"
            }
            Err(_) => "failed",
        };
        #[cfg(feature = "tracing")]
        {
            self.span.record("sessile.outcome", outcome);
            if let Err(error) = verdict {
                failed(&self.span, error);
            }
            self.span.in_scope(|| met(core, verdict, outcome));
        }
        #[cfg(feature = "metrics")]
        {
            metrics::counter!("sessile_commits_total", "outcome" => outcome).increment(1);
            metrics::histogram!("sessile_commit_duration_seconds").record(self.elapsed(core));
        }
    }

    /// The sweep is done.
    pub(crate) fn swept(self, core: &Core, swept: &Result<Swept, Error>) {
        #[cfg(feature = "tracing")]
        match swept {
            Ok(swept) => {
                self.span.record("sessile.examined", swept.examined);
                self.span.record("sessile.ended", swept.ended);
            }
            Err(error) => {
                failed(&self.span, error);
            }
        }
        #[cfg(feature = "metrics")]
        {
            for state in core.versions.containers() {
                let name = state.name.to_string();
                metrics::gauge!("sessile_sessions", "container" => name).set(state.count as f64);
            }
            metrics::gauge!("sessile_store_size_bytes").set(core.engine.file_bytes() as f64);
        }
    }

    /// The backup is made.
    pub(crate) fn backed_up(self, backup: &Result<Backup, Error>) {
        #[cfg(feature = "tracing")]
        match backup {
            Ok(backup) => {
                self.span.record("sessile.revision", backup.revision);
                self.span.record("sessile.sessions", backup.sessions);
                self.span.record("sessile.bytes", backup.bytes);
            }
            Err(error) => {
                failed(&self.span, error);
            }
        }
    }

    #[cfg(feature = "metrics")]
    fn elapsed(&self, core: &Core) -> std::time::Duration {
        core.clock.elapsed().saturating_sub(self.since)
    }
}

/// Sessions have been written, by a batch that is about to be made durable.
pub(crate) fn written(commits: &[engine::Commit]) {
    #[cfg(feature = "metrics")]
    for change in commits.iter().flat_map(|commit| &commit.sessions) {
        if let Some(after) = change.after.as_ref().filter(|_| change.place.0.is_container()) {
            let bytes = after.size().bytes as f64;
            metrics::histogram!("sessile_session_size_bytes").record(bytes);
        }
    }
}

/// A batch can be seen.
pub(crate) fn published(started: usize, ended: &EndBatch) {
    #[cfg(feature = "metrics")]
    {
        metrics::counter!("sessile_sessions_created_total").increment(started as u64);
        for (_, reason) in ended {
            let reason = reason.to_string();
            metrics::counter!("sessile_sessions_ended_total", "reason" => reason).increment(1);
        }
    }
}

/// Something happened.
pub(crate) fn event(core: &Core, event: &Event) {
    #[cfg(feature = "tracing")]
    match event {
        Event::ListenerFailed { listener, panicked } => tracing::event!(
            name: "sessile.hook_failed",
            target: "sessile",
            tracing::Level::ERROR,
            hook = %listener,
            panicked,
            "a listener failed"
        ),
        Event::EndGivenUp(session, reason) => tracing::event!(
            name: "sessile.end_given_up",
            target: "sessile",
            tracing::Level::ERROR,
            session.id = core.trace_sessions.then(|| session.key().fingerprint()),
            container = session.container(),
            reason = %reason,
            "the listener of an end is given up"
        ),
        Event::RotatedKeyUsed { container, session } => tracing::event!(
            name: "sessile.rotated_key_used",
            target: "sessile",
            tracing::Level::WARN,
            session.id = core.trace_sessions.then_some(session),
            container = container,
            "a key was used that its session has given up"
        ),
        Event::Overruled { container, session, attributes } => tracing::event!(
            name: "sessile.overruled",
            target: "sessile",
            tracing::Level::WARN,
            session.id = core.trace_sessions.then_some(session),
            container = container,
            attributes = ?attributes,
            "the later of two commits won"
        ),
        Event::UnknownToken { container } => tracing::event!(
            name: "sessile.unknown_token",
            target: "sessile",
            tracing::Level::DEBUG,
            container = container,
            "a token that means no session"
        ),
        Event::AmbiguousToken { container } => tracing::event!(
            name: "sessile.ambiguous_token",
            target: "sessile",
            tracing::Level::WARN,
            container = container,
            "a request with several tokens"
        ),
        Event::ListenerMissing { listener } => tracing::event!(
            name: "sessile.hook_failed",
            target: "sessile",
            tracing::Level::ERROR,
            hook = %listener,
            "a listener is not registered"
        ),
        Event::ResolverFailed { resolver, trouble } => tracing::event!(
            name: "sessile.hook_failed",
            target: "sessile",
            tracing::Level::ERROR,
            hook = %resolver,
            trouble = ?trouble,
            "a resolver had no answer"
        ),
        Event::StorageFailed { .. }
        | Event::FoldFailed { .. }
        | Event::FoldStalled { .. }
        | Event::SweepFailed { .. }
        | Event::Miscounted { .. }
        | Event::Exposed { .. }
        | Event::Clock(_) => tracing::event!(
            name: "sessile.trouble",
            target: "sessile",
            tracing::Level::WARN,
            what = ?event,
            "the store met trouble, and goes on"
        ),
        // What happens to single sessions is told by those who cause it.
        _ => {}
    }
    #[cfg(feature = "metrics")]
    if let Event::UnknownToken { .. } = event {
        metrics::counter!("sessile_unknown_tokens_total").increment(1);
    }
}

/// Tells a recorder what the figures are.
pub(crate) fn describe() {
    #[cfg(feature = "metrics")]
    {
        use metrics::Unit::{Bytes, Count, Seconds};
        use metrics::{describe_counter, describe_gauge, describe_histogram};

        describe_counter!("sessile_sessions_created_total", Count, "Sessions created.");
        describe_counter!("sessile_sessions_ended_total", Count, "Sessions ended, by reason.");
        describe_counter!("sessile_commits_total", Count, "Transactions committed, by outcome.");
        describe_counter!("sessile_unknown_tokens_total", Count, "Tokens that meant no session.");
        describe_gauge!("sessile_sessions", Count, "Sessions that have not ended, by container.");
        describe_gauge!("sessile_store_size_bytes", Bytes, "Files of the store.");
        describe_gauge!(
            "sessile_sweep_lag_seconds",
            Seconds,
            "How late expired sessions are ended."
        );
        describe_histogram!(
            "sessile_commit_duration_seconds",
            Seconds,
            "From commit to its verdict."
        );
        describe_histogram!("sessile_load_duration_seconds", Seconds, "To read one session.");
        describe_histogram!(
            "sessile_session_size_bytes",
            Bytes,
            "Attributes of a session, as written."
        );
    }
}

/// Says which session it is, where that is wanted.
#[cfg(feature = "tracing")]
fn name_session(core: &Core, span: &tracing::Span, place: &Place) {
    if core.trace_sessions && !span.is_disabled() {
        span.record("session.id", place.1.fingerprint());
    }
}

#[cfg(feature = "tracing")]
fn failed(span: &tracing::Span, error: &Error) -> &'static str {
    span.record("error.type", error.kind());
    "failed"
}

/// Tells where a transaction met others.
#[cfg(feature = "tracing")]
fn met(core: &Core, verdict: &Result<Report, Error>, outcome: &str) {
    use tracing::{Level, event};

    let id = |text: &dyn Fn() -> String| core.trace_sessions.then(text);
    match verdict {
        Ok(report) => {
            for merged in &report.merged {
                event!(
                    name: "sessile.merged",
                    target: "sessile",
                    Level::DEBUG,
                    session.id = id(&|| merged.key.fingerprint()),
                    container = %merged.container,
                    attributes = ?merged.attributes,
                    contended = ?merged.contended,
                    "merged with concurrent changes"
                );
            }
        }
        Err(Error::Conflict(conflict)) if outcome == "rejected" => event!(
            name: "sessile.rejected",
            target: "sessile",
            Level::WARN,
            session.id = id(&|| conflict.session.clone()),
            container = %conflict.container,
            reason = %conflict.reason,
            "a commit was refused"
        ),
        Err(error) if outcome == "rejected" => event!(
            name: "sessile.rejected",
            target: "sessile",
            Level::WARN,
            reason = error.kind(),
            "a commit was refused"
        ),
        Err(_) => {}
    }
}
