//! The one loop that reads an upstream's socket. It knows no dialect: bytes in, chunks out, every wait bounded.
//!
//! Dropping the stream closes the connection to the provider, which ends its work and its bill.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use reqwest::{
    Client, Response,
    dns::Resolve,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    },
};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::{
    BreakerSwitch, ChunkStream, Identity, Limits, Provider, ProviderError, ProviderSettings, Unsupported,
    adapt::Adaptations,
    address::{complete, is_loopback},
    breaker::Breaker,
    decoding::Decoding,
    deviations::{DeviationLog, Deviations},
    dialect::{Dialect, Progress, word},
    error::{Exactly, Kind},
    payload::Payload,
    reporter::Reporter,
    retry,
    unanswered::{InTime, Names, before_answer, cut_short},
    unpack::unpacked,
};
use crate::{
    chat::{ChatRequest, Chunk, Image},
    meters::{Meters, Tolerated},
    patience::{self, Patience},
};

/// The most that is read of an error: more does not say more.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How long the numbers may take that follow the finish.
const TAIL: Duration = Duration::from_secs(2);
/// The most bytes decoded before the chunks are passed on, and before whoever else waits for the processor gets it.
const MAX_BATCH: usize = 64 << 10;
/// How often at most to yield for another piece of a burst.
const MAX_YIELDS: u8 = 2;
/// After how many pieces that came alone to see whether they still do.
const PROBE: u8 = 32;
/// Connections kept open for the next request.
const MAX_IDLE: usize = 512;

/// How a provider wants its key.
#[derive(Clone, Copy, Debug)]
pub enum Credentials {
    /// `Authorization: Bearer KEY`.
    Bearer,
    /// The key alone, in this header.
    Header(&'static str),
}

/// A provider behind HTTP, speaking a dialect.
pub struct HttpProvider<D> {
    name: String,
    base_url: String,
    limits: Limits,
    dialect: D,
    client: Client,
    breaker: Option<Breaker>,
    meters: Arc<Meters>,
    deviations: Arc<DeviationLog>,
    reporter: Arc<Reporter>,
    adaptations: Adaptations,
    /// What OpenTelemetry calls it, and the name of its host.
    known_as: (&'static str, String),
}

impl<D: Dialect> HttpProvider<D> {
    /// Makes its client.
    ///
    /// # Errors
    /// A base address, header or key that cannot be one.
    pub fn new(dialect: D, credentials: Credentials, settings: ProviderSettings) -> Result<Self, ProviderError> {
        Self::resolving(dialect, credentials, settings, Names)
    }

    /// The same, with names looked up in this way.
    pub(super) fn resolving(
        dialect: D,
        credentials: Credentials,
        settings: ProviderSettings,
        names: impl Resolve + 'static,
    ) -> Result<Self, ProviderError> {
        let ProviderSettings {
            name,
            base_url,
            api_key,
            headers: extra,
            limits,
            breaker,
            api_version,
            deployment,
            kind,
            meters,
            max_tokens_field,
        } = settings;
        let wrong = |what: &str| ProviderError::config(&name, what);
        if api_version.is_some() || deployment.is_some() {
            return Err(wrong(&format!(
                "api_version and deployment mean nothing to kind {kind:?}"
            ))); // azure takes them out
        }
        if max_tokens_field.is_some() && !matches!(kind.as_str(), "openai" | "groq" | "azure") {
            return Err(wrong(&format!("max_tokens_field means nothing to kind {kind:?}")));
        }
        let address = url::Url::parse(&base_url).map_err(|e| wrong(&format!("base_url: {e}")))?;
        if !matches!(address.scheme(), "http" | "https") || !address.has_host() || address.query().is_some() {
            return Err(wrong("base_url must be http(s)://host[:port][/path]"));
        }
        if !address.username().is_empty() || address.password().is_some() {
            return Err(wrong(
                "base_url is shown to people and must hold no password; api_key and headers are for that",
            ));
        }
        let secrets = api_key.iter().chain(extra.values()).cloned().collect();
        let base_url = complete(&kind, &address);
        let reporter = Arc::new(Reporter::new(&name, &base_url, secrets));
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            HeaderValue::from_static("text/event-stream, application/x-ndjson, application/json"),
        );
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = api_key {
            let (header, value) = match credentials {
                Credentials::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose_secret())),
                Credentials::Header(name) => (HeaderName::from_static(name), key.expose_secret().to_owned()),
            };
            headers.insert(
                header,
                secret(&value).ok_or_else(|| wrong("api_key has a character that no header can hold"))?,
            );
        }
        for (header, value) in dialect.headers() {
            headers.insert(HeaderName::from_static(header), HeaderValue::from_static(value));
        }
        for (header, value) in extra {
            let name = HeaderName::try_from(&header).map_err(|_| wrong(&format!("{header:?} is no header")))?;
            let value = secret(value.expose_secret());
            headers.insert(
                name,
                value.ok_or_else(|| wrong(&format!("the value of header {header} is none")))?,
            );
        }
        let mut client = Client::builder();
        if is_loopback(&address) {
            client = client.no_proxy(); // a proxy elsewhere would look for the server on its own machine
        }
        let client = client
            .user_agent(concat!("sluicegate/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .dns_resolver(Arc::new(InTime {
                names,
                patience: limits.connect_timeout * 19 / 20,
            }))
            .redirect(reqwest::redirect::Policy::none()) // a redirect would carry the key elsewhere
            .connect_timeout(limits.connect_timeout)
            .pool_max_idle_per_host(MAX_IDLE)
            .tcp_nodelay(true)
            // One connection a stream: HTTP/2 would queue streams behind its limit of about a hundred, unseen.
            .http1_only()
            .build()
            .map_err(|e| wrong(&e.to_string()))?;
        let deviations = Arc::new(DeviationLog::new(name.clone(), meters.clone()));
        Ok(Self {
            name,
            deviations,
            base_url,
            reporter,
            adaptations: Adaptations::default(),
            limits,
            dialect,
            client,
            breaker: (breaker == BreakerSwitch::On).then(Breaker::default),
            meters,
            known_as: (system(&kind), address.host_str().unwrap_or_default().to_owned()),
        })
    }

    /// Sends the call and waits for the first content.
    pub(super) async fn open(&self, payload: &Payload, trace: Option<&str>) -> Result<ChunkStream, ProviderError> {
        let address = format!("{}{}", self.base_url, payload.path);
        let mut request = self.client.post(address).body(payload.body());
        if let Some(trace) = trace {
            request = request.header("traceparent", trace);
        }
        let scheme = self.base_url.split_once(':').map_or("", |(scheme, _)| scheme);
        // Interim answers (1xx) are no answer. The client library passes over any number of them, and lets nobody count:
        // so they are bounded by this time alone, and whoever sends nothing else was silent.
        let response = patience::timeout(self.limits.first_byte_timeout, request.send())
            .await
            .map_err(|_| ProviderError::new(Kind::FirstByte, "no answer in time"))?
            .map_err(|e| before_answer(&e, scheme))?;
        let status = response.status().as_u16();
        let header = |name| {
            response
                .headers()
                .get(name)
                .and_then(|v| v.to_str().ok())
                .unwrap_or("")
                .to_ascii_lowercase()
        };
        let (encoding, media) = (header(CONTENT_ENCODING), header(CONTENT_TYPE));
        if status != 200 {
            let headers = response.headers().clone();
            let body = unpacked(&encoding, self.read_error(response).await, MAX_ERROR_BODY);
            let refusal = self.dialect.refusal(status, &headers, &body).explained(&body);
            return Err(match status {
                201..=299 | 304 => refusal.exactly(Exactly::Empty),
                300..=399 => refusal.exactly(Exactly::Redirect),
                _ => refusal,
            });
        }
        let foreign = |exactly, what: String| {
            ProviderError::new(Kind::Protocol, what)
                .exactly(exactly)
                .with_status(200)
        };
        if !matches!(encoding.as_str(), "" | "identity") {
            return Err(foreign(
                Exactly::Encoding,
                format!("content-encoding {}", word(&encoding)),
            ));
        }
        let mut media_parts = media.split(';').map(str::trim);
        let media_type = media_parts.next().unwrap_or("");
        if let Some(charset) = media_parts.find_map(|part| part.strip_prefix("charset="))
            && !matches!(charset.trim_matches('"'), "utf-8" | "utf8" | "us-ascii")
        {
            return Err(foreign(Exactly::Encoding, format!("charset {}", word(charset))));
        }
        match media_type {
            "text/event-stream" | "application/x-ndjson" | "text/plain" | "application/octet-stream" | "" => {}
            "application/json" => {
                let body = self.read_answer(response).await.map_err(|e| e.with_status(200))?;
                let mut odd = Deviations::default();
                let whole = self.dialect.whole(&body, &mut odd).map_err(|e| e.explained(&body));
                let chunks = whole.map_err(|e| match (body.is_empty(), e.kind) {
                    (true, _) => e.exactly(Exactly::Empty),
                    // Who takes a request with a 200 does not refuse it: whatever it calls this, it is an error of its own.
                    (_, Kind::Rejected) => ProviderError {
                        kind: Kind::Reported,
                        ..e
                    },
                    _ => e,
                });
                let chunks = chunks.map_err(|e| e.with_status(200))?;
                odd.add(Tolerated::Whole);
                odd.add_if(!chunks.iter().any(Chunk::is_content), Tolerated::Empty);
                odd.iter().for_each(|what| self.deviations.note(what));
                return Ok(Box::pin(tokio_stream::once(Ok(chunks))));
            }
            other => return Err(foreign(Exactly::ContentType, format!("content-type {}", word(other)))),
        }

        let mut reading = Reading {
            body: response,
            decoding: Decoding::new(&self.dialect, self.limits.max_event),
            patience: Patience::new(self.limits.first_token_timeout),
            first_token: self.limits.first_token_timeout,
            gap: self.limits.gap_timeout,
            spoke: false,
            heard: None,
            over: false,
            unbroken: 0,
            bursts: 1,
            singles: 0,
            failed: None,
        };
        let Some(mut batch) = reading.next().await? else {
            return Err(ProviderError::new(Kind::Truncated, "an empty stream").with_status(200));
        };
        let (reporter, deviations) = (self.reporter.clone(), self.deviations.clone());
        let path = payload.path.clone();
        Ok(Box::pin(async_stream::try_stream! {
            loop {
                yield batch;
                match reading.next().await.map_err(|e| reporter.broken_off(e, &path))? {
                    Some(next) => batch = next,
                    None => break,
                }
            }
            for what in reading.decoding.tolerated() {
                deviations.note(what);
            }
        }))
    }

    /// The body of an error, as far as it comes within the patience for a first token.
    async fn read_error(&self, mut response: Response) -> Vec<u8> {
        let mut body = Vec::new();
        let read = async {
            while let Ok(Some(piece)) = response.chunk().await {
                let room = MAX_ERROR_BODY - body.len();
                body.extend_from_slice(&piece[..piece.len().min(room)]);
                if piece.len() >= room {
                    break;
                }
            }
        };
        let _ = patience::timeout(self.limits.first_token_timeout, read).await; // what came is what counts
        body
    }

    /// The body of an answer that is not a stream. Only its own end says that it is whole.
    ///
    /// # Errors
    /// A body that broke off, that is over the limit of an event, or whose end does not come within the patience for a
    /// first token.
    async fn read_answer(&self, mut response: Response) -> Result<Vec<u8>, ProviderError> {
        let limit = self.limits.max_event;
        let read = async {
            let mut body = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(|e| cut_short(&e))? {
                if body.len() + piece.len() > limit {
                    let detail = format!("an answer over {limit} bytes");
                    return Err(ProviderError::new(Kind::Protocol, detail).exactly(Exactly::EventLimit));
                }
                body.extend_from_slice(&piece);
            }
            Ok(body)
        };
        let late = |_| ProviderError::new(Kind::FirstToken, "no end of the answer in time");
        tokio::time::timeout(self.limits.first_token_timeout, read)
            .await
            .map_err(late)?
    }
}

impl<D: Dialect> Provider for HttpProvider<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Identity<'_> {
        let (system, server) = &self.known_as;
        Identity {
            system,
            server: Some(server),
        }
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        self.dialect.check(request)
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChunkStream, ProviderError>> {
        Box::pin(async move {
            let takes = |image: &Image| self.dialect.takes_image(&image.media_type);
            let mut known = self.adaptations.of(&request.model);
            loop {
                let answer = self.ask(&known.apply(request, takes)).await;
                let learnt = match &answer {
                    Ok(_) => None,
                    Err(error) => self.adaptations.learn(request, known, error),
                };
                match learnt {
                    Some(more) => known = more, // at most as often as there is something to learn
                    None => return answer,
                }
            }
        })
    }
}

impl<D: Dialect> HttpProvider<D> {
    /// Asks, and asks again as far as that is allowed.
    async fn ask(&self, request: &ChatRequest) -> Result<ChunkStream, ProviderError> {
        let payload = Payload::encode(&self.dialect, request).map_err(|e| e.of(&self.name))?;
        let trace = request.trace.as_deref();
        let attempt = || async {
            let Some(breaker) = &self.breaker else {
                return self.open(&payload, trace).await;
            };
            breaker.admit()?;
            let outcome = self.open(&payload, trace).await;
            breaker.note(&outcome);
            outcome
        };
        let attempt = || async { attempt().await.map_err(|e| self.reporter.complete(e)) };
        let again = |error: &ProviderError| self.meters.call_again(&self.name, retry::reason(error));
        let answer = retry::ask(self.limits.max_retries, request.again, attempt, again).await;
        answer.map_err(|error| self.reporter.report(error, request, &payload.path))
    }
}

/// An answer being read.
struct Reading {
    body: Response,
    decoding: Decoding,
    /// Ends when no *content* came for too long: keep-alives do not count.
    patience: Patience,
    first_token: Duration,
    gap: Duration,
    /// Whether content has come.
    spoke: bool,
    /// When bytes came last that were no content.
    heard: Option<Instant>,
    /// Whether nothing is to be read any more.
    over: bool,
    /// Bytes decoded since the processor was last given away.
    unbroken: usize,
    /// How often it is worth to yield for another piece.
    bursts: u8,
    /// How many pieces came alone since it was not.
    singles: u8,
    /// What to say once the batch before it was delivered.
    failed: Option<ProviderError>,
}

impl Reading {
    /// The next batch: everything that is there to be read, as soon as there is content. `None` after the finish.
    async fn next(&mut self) -> Result<Option<Vec<Chunk>>, ProviderError> {
        let mut out = Vec::new();
        loop {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if self.over || self.decoding.progress() == Progress::Over {
                return Ok(None);
            }
            if let Err(error) = self.read(&mut out).await {
                self.over = true;
                self.failed = Some(error.with_status(200));
            }
            if out.iter().any(Chunk::is_content) {
                self.spoke = true;
                self.patience.extend(self.gap());
            } else {
                self.heard = Some(Instant::now());
            }
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
    }

    /// Waits for a piece, and takes what is there with it.
    async fn read(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        if self.unbroken >= MAX_BATCH {
            self.unbroken = 0;
            tokio::task::yield_now().await;
        }
        // Keep-alives without a pause never let the clock be asked.
        if self.heard.is_some_and(|at| self.patience.ended_before(at)) {
            return self.silence(out);
        }
        let mut piece = tokio::select! {
            biased;
            piece = self.body.chunk() => piece,
            () = self.patience.over() => return self.silence(out),
        };
        let mut taken = 0;
        loop {
            match piece {
                Ok(Some(bytes)) => {
                    taken += bytes.len();
                    self.take(&bytes, out)?;
                }
                Ok(None) => return self.decoding.end(None, out),
                Err(error) => return self.decoding.end(Some(cut_short(&error)), out),
            }
            if self.decoding.progress() == Progress::Over || taken >= MAX_BATCH {
                return Ok(());
            }
            piece = match self.another().await {
                Some(piece) => piece,
                None => return Ok(()),
            };
        }
    }

    /// Another piece, if there is one now. The client library hands over HTTP chunks one at a time, from a task of its own:
    /// yielding lets the next arrive, so that what came in one segment leaves in one write. Whether that is worth its cost
    /// is learnt: a stream that comes in bursts is given as many chances as pay, one of single tokens a chance now and then.
    async fn another(&mut self) -> Option<reqwest::Result<Option<Bytes>>> {
        let mut chances = self.bursts;
        if chances == 0 {
            self.singles = self.singles.wrapping_add(1);
            chances = u8::from(self.singles.is_multiple_of(PROBE));
        }
        for chance in 0..=chances {
            if let Some(piece) = self.body.chunk().now_or_never() {
                if chance == chances {
                    self.bursts = MAX_YIELDS.min(self.bursts + 1);
                }
                return Some(piece);
            }
            if chance < chances {
                tokio::task::yield_now().await;
            }
        }
        self.bursts = self.bursts.saturating_sub(1);
        None
    }

    /// How long may be silent what is under way: after the finish only numbers can follow.
    fn gap(&self) -> Duration {
        match self.decoding.progress() {
            Progress::More => self.gap,
            Progress::Finishing | Progress::Over => TAIL,
        }
    }

    /// Decodes a piece. After the finish there is less patience, unless it turns out that it was none.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let before = self.decoding.progress();
        self.unbroken += bytes.len();
        self.decoding.push(bytes, out)?;
        if before != self.decoding.progress() {
            self.patience.extend(self.gap());
        }
        Ok(())
    }

    /// Patience is over.
    fn silence(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let (silence, patience) = match (self.decoding.progress(), self.spoke) {
            (Progress::More, false) => (
                ProviderError::new(Kind::FirstToken, "no content in time"),
                self.first_token,
            ),
            (Progress::More, true) => (ProviderError::new(Kind::Gap, "no more content in time"), self.gap),
            _ => return self.decoding.end(None, out),
        };
        // It is not dead if it was heard of to the end, and yet it came to nothing.
        Err(match self.heard.is_some_and(|at| at.elapsed() < patience / 2) {
            true => silence.exactly(Exactly::NoProgress),
            false => silence,
        })
    }
}

/// The well-known value of `gen_ai.provider.name` for a kind of provider (semantic conventions 1.41.0).
fn system(kind: &str) -> &'static str {
    match kind {
        "openai" | "openai-responses" => "openai",
        "anthropic" => "anthropic",
        "gemini" => "gcp.gemini",
        "groq" => "groq",
        "azure" => "azure.ai.openai",
        "ollama" => "ollama",
        _ => "other",
    }
}

/// A header's value that debug output masks.
fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}
