//! What it means that a request got no answer, or only a part of one: read off the client library's errors.

use std::{
    error::Error as _,
    io::{self, ErrorKind},
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{
    ProviderError,
    error::{Exactly, Kind},
};

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
        return match () {
            () if any(error, |cause| is_tls(cause).then_some(())).is_some() => of(Kind::Tls, None),
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
        _ if any(error, |cause| is_tls(cause).then_some(())).is_some() => of(Kind::Protocol, None), // it may have been sent
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
    std::iter::successors(error.source(), |cause| (**cause).source()).find_map(look)
}

/// Whether TLS is at fault: rustls reports through `io::Error`.
fn is_tls(cause: &(dyn std::error::Error + 'static)) -> bool {
    let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    cause.is::<rustls::Error>() || inner.is_some_and(|e| e.is::<rustls::Error>())
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
