//! Spans to whoever collects them, over OTLP (protobuf over HTTP). The only place that knows OpenTelemetry's library.
//!
//! Nobody waits for a collector. A span that has ended goes into a queue with an end; a task of the gateway's own runtime sends
//! what is there; what there is no room for, or nobody takes, is lost and counted. (Own code around the library's exporter: its
//! batch processor has a thread without a runtime, on which an asynchronous client panics.)

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{
    Array, Context, KeyValue,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::trace::{Kind, OtlpSettings, Sampled, TraceContext, Value};

/// Spans that may wait.
const QUEUE: usize = 4096;
/// The most of one request.
const BATCH: usize = 512;
/// How long spans gather.
const WINDOW: Duration = Duration::from_millis(500);
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last spans may take when the gateway stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// The most that is read of a collector's answer.
const MAX_ANSWER: usize = 64 << 10;

/// What sends spans.
pub(super) struct Exporter {
    tracer: SdkTracer,
    lost: Arc<AtomicU64>,
    closing: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

/// Whether an address is this machine's own, so that a proxy elsewhere would not find it.
fn is_loopback(endpoint: &str) -> bool {
    let address = url::Url::parse(endpoint).ok();
    match address.as_ref().and_then(url::Url::host) {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

impl Exporter {
    pub(super) fn begin(settings: &OtlpSettings) -> Result<Self, String> {
        let wrong = |what: String| format!("log.otlp_endpoint: {what}");
        let mut client = reqwest::Client::builder();
        if is_loopback(&settings.endpoint) {
            client = client.no_proxy();
        }
        let client = client
            .user_agent(concat!("sluicegate/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        let base = settings.endpoint.trim_end_matches('/');
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Sender(client))
            .with_endpoint(format!("{base}/v1/traces"))
            .with_timeout(PATIENCE)
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        let resource = Resource::builder()
            .with_service_name(settings.service.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        exporter.set_resource(&resource);
        let (to, waiting) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let queue = Queue { to, lost: lost.clone() };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(queue)
            .build();
        let closing = CancellationToken::new();
        let task = tokio::spawn(send_all(exporter, waiting, lost.clone(), closing.clone()));
        Ok(Self {
            tracer: provider.tracer("sluicegate"),
            lost,
            closing,
            task: Mutex::new(Some(task)),
        })
    }

    pub(super) fn open(&self, parent: Option<TraceContext>, kind: Kind, name: String) -> (TraceContext, Open) {
        let mut within = Context::new();
        if let Some(parent) = parent {
            let flags = match parent.sampled {
                Sampled::Yes => TraceFlags::SAMPLED,
                Sampled::No => TraceFlags::NOT_SAMPLED,
            };
            let (trace, span) = (TraceId::from(parent.trace), SpanId::from(parent.span));
            let parent = SpanContext::new(trace, span, flags, kind == Kind::Server, TraceState::default());
            within = within.with_remote_span_context(parent);
        }
        let kind = match kind {
            Kind::Server => SpanKind::Server,
            Kind::Internal => SpanKind::Internal,
            Kind::Client => SpanKind::Client,
        };
        let span = self
            .tracer
            .span_builder(name)
            .with_kind(kind)
            .start_with_context(&self.tracer, &within);
        let about = span.span_context();
        let context = TraceContext {
            trace: u128::from_be_bytes(about.trace_id().to_bytes()),
            span: u64::from_be_bytes(about.span_id().to_bytes()),
            sampled: if about.is_sampled() { Sampled::Yes } else { Sampled::No },
        };
        (context, Open(Box::new(span)))
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    pub(super) async fn close(&self) {
        self.closing.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && timeout(FAREWELL, task).await.is_err()
        {
            tracing::warn!("the last spans were not taken in time");
        }
    }
}

/// A span under way.
#[derive(Debug)]
pub(super) struct Open(Box<opentelemetry_sdk::trace::Span>); // boxed, so that a run that is not recorded need not hold room for it

impl Open {
    pub(super) fn note(&mut self, name: &'static str, value: Value) {
        let value = match value {
            Value::Text(text) => text.into(),
            Value::Number(number) => opentelemetry::Value::I64(number),
            Value::Words(words) => {
                opentelemetry::Value::Array(Array::String(words.into_iter().map(Into::into).collect()))
            }
        };
        self.0.set_attribute(KeyValue::new(name, value));
    }

    pub(super) fn fail(&mut self, word: &'static str) {
        self.0.set_attribute(KeyValue::new("error.type", word));
        self.0.set_status(Status::error(word));
    }
}

/// Where ended spans wait.
#[derive(Debug)]
struct Queue {
    to: mpsc::Sender<SpanData>,
    lost: Arc<AtomicU64>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.to.try_send(span).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends what waits, until the gateway stops and nothing does any more.
async fn send_all(
    exporter: SpanExporter,
    mut waiting: mpsc::Receiver<SpanData>,
    lost: Arc<AtomicU64>,
    closing: CancellationToken,
) {
    let mut well = true;
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            count = waiting.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = closing.cancelled() => {}
        }
        if batch.len() < BATCH && !closing.is_cancelled() {
            let _ = timeout(WINDOW, closing.cancelled()).await;
        }
        while batch.len() < BATCH
            && let Ok(span) = waiting.try_recv()
        {
            batch.push(span);
        }
        if batch.is_empty() {
            return; // it closes, and that was all
        }
        let count = batch.len() as u64;
        let outcome = match timeout(PATIENCE, exporter.export(batch)).await {
            Ok(outcome) => outcome.map_err(|e| e.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        match outcome {
            Ok(()) if well => {}
            Ok(()) => {
                well = true;
                tracing::info!("spans are taken again");
            }
            Err(cause) => {
                lost.fetch_add(count, Relaxed);
                if std::mem::replace(&mut well, false) {
                    tracing::warn!(cause, "spans are not taken by the collector, and are lost");
                }
            }
        }
    }
}

/// The library's client, as ours.
#[derive(Debug)]
struct Sender(reqwest::Client);

impl HttpClient for Sender {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let mut response = self.0.execute(request.try_into()?).await?;
            let mut answer = Response::builder().status(response.status());
            if let Some(headers) = answer.headers_mut() {
                headers.clone_from(response.headers());
            }
            let mut body = Vec::new();
            while let Some(piece) = response.chunk().await? {
                if body.len() + piece.len() > MAX_ANSWER {
                    break;
                }
                body.extend_from_slice(&piece);
            }
            Ok(answer.body(body.into())?)
        })
    }
}
