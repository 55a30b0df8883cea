//! Requests to a server over streamable HTTP: answers are bounded before they are parsed, and an
//! error always answers the request that it came for.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::BoxStream};
use memchr::memmem;
use reqwest::{
    Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use rmcp::{
    model::{ClientJsonRpcMessage, ClientRequest, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage},
    transport::streamable_http_client::{
        HttpStatusError, SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use rmcp_sse::{Sse, SseStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::message::{self, MAX_MESSAGE, Size};

/// How much of an error's body is read, in bytes.
const MAX_ERROR: usize = 64 << 10;
/// How many large answers of one server are read at once.
const LARGE_AT_ONCE: usize = 2;
const SESSION: &str = "mcp-session-id";

type Failure = StreamableHttpError<reqwest::Error>;
type Events = BoxStream<'static, Result<Sse, SseError>>;

/// Why an event stream is not read on.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// An event is beyond the bounds of a message.
    #[error("an event is too large")]
    TooLarge,
    #[error(transparent)]
    Connection(#[from] reqwest::Error),
}

/// A client of one server.
#[derive(Clone)]
pub(super) struct HttpClient {
    client: reqwest::Client,
    large: Arc<Semaphore>,
}

impl HttpClient {
    pub(super) fn new(client: reqwest::Client) -> Self {
        Self {
            client,
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        }
    }

    /// Sends a message, and reads what comes back as far as the message wants an answer.
    async fn post(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let mut request = self
            .client
            .post(&*uri)
            .header(ACCEPT, "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(session) = &session {
            request = request.header(SESSION, &**session);
        }
        let response = request.json(&message).send().await?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND && session.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        let ClientJsonRpcMessage::Request(asked) = &message else {
            // Nobody waits for an answer to a notification, whatever comes.
            return match status.is_success() {
                true => Ok(StreamableHttpPostResponse::Accepted),
                false => Err(refused(status, &response)),
            };
        };
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if !status.is_success() {
            let discovers = matches!(asked.request, ClientRequest::DiscoverRequest(_));
            return error_answer(response, &asked.id, discovers, session.is_some()).await;
        }
        let new_session = response.headers().get(SESSION);
        let new_session = new_session.and_then(|id| id.to_str().ok()).map(str::to_owned);
        let kind = response
            .headers()
            .get(CONTENT_TYPE)
            .map(HeaderValue::as_bytes)
            .unwrap_or_default();
        let kind = String::from_utf8_lossy(kind).to_ascii_lowercase();
        if kind.starts_with("text/event-stream") {
            let events = self.events(response, asked.id.clone());
            return Ok(StreamableHttpPostResponse::Sse(events, new_session));
        }
        if !kind.starts_with("application/json") {
            return Err(StreamableHttpError::UnexpectedContentType(
                Some(kind).filter(|kind| !kind.is_empty()),
            ));
        }
        let answer = match self.read(response).await? {
            None => Some(message::too_large(asked.id.clone())),
            Some((body, _permit)) => message::read(&body, Some(&asked.id)),
        };
        let answer = answer
            .ok_or_else(|| StreamableHttpError::UnexpectedServerResponse("something that is no message".into()))?;
        Ok(StreamableHttpPostResponse::Json(answer, new_session))
    }

    /// Reads a body; `None` if it is beyond the bounds of a message. The permit of a large one is to
    /// be kept until the body was parsed.
    async fn read(&self, mut response: Response) -> Result<Option<(Vec<u8>, Option<OwnedSemaphorePermit>)>, Failure> {
        if response
            .content_length()
            .is_some_and(|length| length > MAX_MESSAGE as u64)
        {
            return Ok(None);
        }
        let (mut body, mut size, mut permit) = (Vec::new(), Size::default(), None);
        while let Some(piece) = response.chunk().await? {
            if !size.admits(&piece) {
                return Ok(None);
            }
            if size.is_large() && permit.is_none() {
                permit = self.large.clone().acquire_owned().await.ok();
            }
            body.extend_from_slice(&piece);
        }
        Ok(Some((body, permit)))
    }

    /// The events of an answer to the request `id`.
    fn events(&self, response: Response, id: RequestId) -> Events {
        let pieces = bounded(response.bytes_stream(), self.large.clone());
        let events = SseStream::from_bytes_stream(pieces);
        let checked = move |event| match event {
            Ok(event) => Ok(checked(event, Some(&id))),
            Err(SseError::Body(why)) if matches!(why.downcast_ref(), Some(Broken::TooLarge)) => {
                let answer = message::too_large(id.clone());
                Ok(Sse::default().data(serde_json::to_string(&answer).unwrap_or_default()))
            }
            Err(why) => Err(why),
        };
        events.map(checked).boxed()
    }
}

/// An event as the library may parse it. An error in it answers the request `id`.
fn checked(mut event: Sse, id: Option<&RequestId>) -> Sse {
    let Some(data) = &event.data else { return event };
    let bytes = data.as_bytes();
    let has = |word: &str| memmem::find(bytes, word.as_bytes()).is_some();
    let changed = if !Size::default().admits(bytes) {
        Some(id.cloned().map(message::too_large))
    } else if bytes.len() <= MAX_ERROR && id.is_some() && has("\"error\"") && !has("\"result\"") {
        message::read(bytes, id).map(Some)
    } else if has("\"taskSupport\"") {
        message::read(bytes, None).map(Some)
    } else {
        None
    };
    if let Some(message) = changed {
        event.data = message.and_then(|message| serde_json::to_string(&message).ok());
    }
    event
}

/// The bytes of an event stream, as long as no event is too large. Of large events few are read at
/// once.
fn bounded(
    pieces: impl Stream<Item = Result<Bytes, reqwest::Error>> + Send + 'static,
    large: Arc<Semaphore>,
) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
    async_stream::stream! {
        let mut pieces = std::pin::pin!(pieces);
        let (mut event, mut permit) = (Event::default(), None);
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(why) => {
                    yield Err(why.into());
                    return;
                }
            };
            if !event.admits(&piece) {
                yield Err(Broken::TooLarge);
                return;
            }
            match event.size.is_large() {
                true if permit.is_none() => permit = large.clone().acquire_owned().await.ok(),
                true => {}
                false => permit = None,
            }
            yield Ok(piece);
        }
    }
}

/// The event that is being read: it ends with an empty line.
#[derive(Default)]
struct Event {
    size: Size,
    line_has_text: bool,
    after_return: bool,
}

impl Event {
    fn admits(&mut self, piece: &[u8]) -> bool {
        let mut begin = 0;
        for (at, byte) in piece.iter().enumerate() {
            match byte {
                b'\n' if self.after_return => self.after_return = false,
                b'\n' | b'\r' => {
                    self.after_return = *byte == b'\r';
                    if !self.line_has_text {
                        self.size = Size::default();
                        begin = at + 1;
                    }
                    self.line_has_text = false;
                }
                _ => {
                    self.after_return = false;
                    self.line_has_text = true;
                }
            }
        }
        self.size.admits(&piece[begin..])
    }
}

/// What an answer with an error's status means to a request.
async fn error_answer(
    mut response: Response,
    id: &RequestId,
    discovers: bool,
    in_session: bool,
) -> Result<StreamableHttpPostResponse, Failure> {
    let status = response.status();
    let failure = refused(status, &response);
    let is_denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if is_denied || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(failure);
    }
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        if body.len() + piece.len() > MAX_ERROR {
            return Err(failure);
        }
        body.extend_from_slice(&piece);
    }
    let error = message::read_error(&body, Some(id));
    if let Some(error) = error {
        let lost = in_session && status == StatusCode::BAD_REQUEST && speaks_of_session(&error);
        return match lost {
            true => Err(StreamableHttpError::SessionExpired),
            false => Ok(StreamableHttpPostResponse::Json(error, None)),
        };
    }
    if discovers && !in_session && status.is_client_error() {
        let why = ErrorData::invalid_request(format!("server/discover was refused with HTTP {status}"), None);
        let answer = ServerJsonRpcMessage::error(why, Some(id.clone()));
        return Ok(StreamableHttpPostResponse::Json(answer, None));
    }
    Err(failure)
}

/// Whether an error is about the session. Some servers answer 400 where the protocol wants 404.
fn speaks_of_session(error: &ServerJsonRpcMessage) -> bool {
    match error {
        JsonRpcMessage::Error(error) => error.error.message.to_ascii_lowercase().contains("session"),
        _ => false,
    }
}

/// The failure of a request that was refused with this status.
fn refused(status: StatusCode, response: &Response) -> Failure {
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok());
        return HttpStatusError::new(status.as_u16(), after.map(str::to_owned)).into();
    }
    StreamableHttpError::UnexpectedServerResponse(format!("HTTP {status}").into())
}

impl StreamableHttpClient for HttpClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        self.post(uri, message, session_id, custom_headers).await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failure> {
        self.client
            .delete_session(uri, session_id, auth_header, custom_headers)
            .await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<Events, Failure> {
        let events = self
            .client
            .get_stream_with_max_sse_event_size(
                uri,
                session_id,
                last_event_id,
                auth_header,
                custom_headers,
                MAX_MESSAGE,
            )
            .await?;
        Ok(events.map(|event| event.map(|event| checked(event, None))).boxed())
    }
}
