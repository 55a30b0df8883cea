//! What it means that a request got no answer, or only a part of one: read off the client library's errors.

use std::{
    error::Error as _,
    io::{self, ErrorKind},
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{
    ProviderError,
    error::{Exactly, Kind},
};

/// What the system calls it that there are no more file descriptors: in the whole machine (`ENFILE`), in this process
/// (`EMFILE`).
const NO_FILES: [i32; 2] = [23, 24];

/// Looks names up as the machine does, and says so when there is no such name.
#[derive(Clone, Copy, Debug)]
pub struct Names;

/// A name that leads nowhere.
#[derive(Debug, thiserror::Error)]
#[error("no address for that name: {0}")]
struct Nowhere(#[source] io::Error);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(Nowhere)?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

/// A resolver that is waited for a little less than for a connection as a whole, so that it is known which of them was late.
pub(super) struct InTime<R> {
    pub(super) names: R,
    pub(super) patience: Duration,
}

/// A name that nobody tells the address of.
#[derive(Debug, thiserror::Error)]
#[error("nobody said in time which address the name has")]
struct Unheard;

impl<R: Resolve> Resolve for InTime<R> {
    fn resolve(&self, name: Name) -> Resolving {
        let found = crate::patience::timeout(self.patience, self.names.resolve(name));
        Box::pin(async { found.await.map_err(|_| Unheard)? })
    }
}

/// What a request that got no answer means.
#[must_use]
pub fn before_answer(error: &reqwest::Error, scheme: &str) -> ProviderError {
    let told = ProviderError::new(Kind::EmptyReply, causes(error));
    let of = |kind, exactly| ProviderError {
        kind,
        exactly,
        ..told.clone()
    };
    if error.is_timeout() {
        return of(Kind::ConnectTimeout, None);
    }
    if error.is_connect() {
        let broken = |io: &io::Error| {
            let kinds = [
                ErrorKind::ConnectionReset,
                ErrorKind::UnexpectedEof,
                ErrorKind::BrokenPipe,
            ];
            kinds.contains(&io.kind())
        };
        let no_files = |io: &io::Error| io.raw_os_error().is_some_and(|code| NO_FILES.contains(&code));
        return match () {
            () if any(error, |cause| cause.downcast_ref().filter(|io| no_files(io))).is_some() => {
                of(Kind::Connect, Some(Exactly::NoFiles))
            }
            () if any(error, |cause| cause.downcast_ref::<Unheard>()).is_some() => {
                of(Kind::ConnectTimeout, Some(Exactly::DnsTimeout))
            }
            () if any(error, |cause| cause.downcast_ref::<rustls::Error>()).is_some() => of(Kind::Tls, None),
            () if any(error, |cause| cause.downcast_ref::<Nowhere>()).is_some() => {
                of(Kind::Connect, Some(Exactly::Dns))
            }
            // A connection that is there and breaks before it can be used: in the handshake.
            () if scheme == "https" && any(error, |cause| cause.downcast_ref().filter(|io| broken(io))).is_some() => {
                of(Kind::Tls, Some(Exactly::Handshake))
            }
            () => of(Kind::Connect, None),
        };
    }
    match any(error, |cause| cause.downcast_ref::<hyper::Error>()) {
        Some(hyper) if hyper.is_parse_too_large() => of(Kind::Protocol, Some(Exactly::HeaderLimit)),
        Some(hyper) if hyper.is_parse() => of(Kind::Protocol, None),
        _ if any(error, |cause| cause.downcast_ref::<rustls::Error>()).is_some() => of(Kind::Protocol, None), // it may have been sent
        _ => told,
    }
}

/// What an answer means whose body broke off.
#[must_use]
pub fn cut_short(error: &reqwest::Error) -> ProviderError {
    let reset = |io: &&io::Error| io.kind() == ErrorKind::ConnectionReset;
    let exactly = match any(error, |cause| cause.downcast_ref().filter(reset)) {
        Some(_) => Exactly::Reset,
        None => Exactly::IncompleteBody,
    };
    ProviderError::new(Kind::Truncated, causes(error)).exactly(exactly)
}

/// The first of the causes in which there is what is looked for.
fn any<'a, T>(
    error: &'a reqwest::Error,
    look: impl Fn(&'a (dyn std::error::Error + 'static)) -> Option<T>,
) -> Option<T> {
    std::iter::successors(error.source(), |cause| behind(*cause)).find_map(look)
}

/// What is behind a cause. An `io::Error` names what is behind that which it holds, so that one must be taken out: rustls
/// reports through two of them.
fn behind<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(held) => Some(held),
        None => cause.source(),
    }
}

/// An error and what is behind it, without the address.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::from("HTTP");
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tokio::time::Instant;

    use super::*;
    use crate::provider::{
        BreakerSwitch, Limits, ProviderSettings,
        openai::OpenAi,
        payload::Payload,
        upstream::{Credentials, HttpProvider},
    };

    /// A resolver that says nothing.
    struct Silent;

    impl Resolve for Silent {
        fn resolve(&self, _: Name) -> Resolving {
            Box::pin(std::future::pending())
        }
    }

    /// A resolver that knows no name.
    struct Unknowing;

    impl Resolve for Unknowing {
        fn resolve(&self, _: Name) -> Resolving {
            Box::pin(async { Err(Nowhere(io::Error::other("no such name")).into()) })
        }
    }

    /// A resolver that may open no socket.
    struct Full(i32);

    impl Resolve for Full {
        fn resolve(&self, _: Name) -> Resolving {
            let error = Nowhere(io::Error::from_raw_os_error(self.0));
            Box::pin(async { Err(error.into()) })
        }
    }

    /// What a call comes to with such a resolver, and how long it takes.
    async fn asked(resolver: impl Resolve + 'static) -> (ProviderError, Duration) {
        let settings = ProviderSettings {
            name: "far".into(),
            kind: "openai".into(),
            base_url: "http://provider.invalid/v1".into(),
            api_key: None,
            headers: BTreeMap::new(),
            api_version: None,
            deployment: None,
            max_tokens_field: None,
            limits: Limits {
                connect_timeout: Duration::from_millis(300),
                first_byte_timeout: Duration::from_secs(60),
                first_token_timeout: Duration::from_secs(60),
                gap_timeout: Duration::from_secs(60),
                max_retries: 0,
                max_event: 1 << 20,
            },
            breaker: BreakerSwitch::Off,
            meters: std::sync::Arc::default(),
        };
        let provider = HttpProvider::resolving(OpenAi::default(), Credentials::Bearer, settings, resolver).unwrap();
        let began = Instant::now();
        let payload = Payload::of("/ask", vec!["{}".into()]);
        let outcome = provider.open(&payload, None).await;
        (outcome.err().expect("nobody there"), began.elapsed())
    }

    // F04 and F03 of the table of faults. No packet leaves: the resolver is one of ours.
    #[tokio::test]
    async fn a_resolver_that_says_nothing_is_a_connection_that_never_comes() {
        let (error, took) = asked(Silent).await;
        assert_eq!(
            (error.kind, error.word(), error.unsent()),
            (Kind::ConnectTimeout, "dns_timeout", true)
        );
        assert!((280..5000).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_leads_nowhere() {
        let (error, _) = asked(Unknowing).await;
        assert_eq!((error.kind, error.word(), error.unsent()), (Kind::Connect, "dns", true));
    }

    // S16: the provider is not to be left alone for what this gateway lacks.
    #[tokio::test]
    async fn a_gateway_without_files_is_no_fault_of_the_provider_s() {
        for code in NO_FILES {
            let (error, _) = asked(Full(code)).await;
            assert_eq!((error.kind, error.word()), (Kind::Connect, "no_files"));
            assert!(error.unsent() && !error.is_failure());
        }
    }
}
