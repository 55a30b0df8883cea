//! Files that runs made: for their owner to download, and for no browser to show.
//!
//! What is in a file was written by a model or by a tool's server. Whatever it claims to be, it is sent as bytes to be
//! saved: no type that a browser would show or run, and a sandbox for one that shows it all the same.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use std::{fmt::Write as _, ops::Range};

use super::{
    Front,
    auth::Caller,
    error::Refusal,
    query::{PathId, Query, known},
    tickets::{self, Visitor},
};
use crate::{
    chat::ArtifactId,
    error::{Error, ErrorCode},
};

/// `GET /artifacts/{artifact_id}`.
pub async fn download(
    State(front): State<Front>,
    Visitor { caller, ticket }: Visitor,
    id: PathId,
    (method, uri, headers): (Method, Uri, HeaderMap),
) -> Result<Response, Refusal> {
    let id: ArtifactId = known(id)?;
    let mut query = Query::read(uri.query(), &["ticket"])?;
    if query.take("ticket").is_some() != ticket.is_some() {
        return Err(tickets::invalid().into()); // one that is written in another way
    }
    if let Some(ticket) = &ticket {
        ticket.download(&front, id, &method).await?;
    }
    let sent = send(&front, &caller, id, &method, &headers).await;
    let whole = sent.as_ref().is_ok_and(|response| response.status().is_success());
    if let Some(ticket) = ticket.filter(|_| !whole && method != Method::HEAD) {
        ticket.give_back(&front).await;
    }
    sent
}

/// The file, or what is said instead of it.
async fn send(
    front: &Front,
    caller: &Caller,
    id: ArtifactId,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let artifact = front.runs.artifact(&caller.principal, id).await?;
    let tag = format!("\"{}\"", artifact.sha256);
    let mut answer = of_file(&tag);
    answer.extend(shown_nowhere(&artifact.name));
    if matches(headers, &header::IF_NONE_MATCH, |told| told == tag || told == "*") {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    let range = match (*method == Method::GET && still(headers, &tag)).then(|| asked(headers, artifact.size)) {
        None | Some(Asked::Whole) => None,
        Some(Asked::Part(range)) => Some(range),
        Some(Asked::Nothing) => {
            let told = [(header::CONTENT_RANGE, format!("bytes */{}", artifact.size))];
            let message = "The file has no such range of bytes.";
            let refusal = Refusal::from(Error::new(ErrorCode::RangeInvalid, message));
            return Ok((told, shown_nowhere(&artifact.name), refusal).into_response());
        }
    };
    let status = match &range {
        Some(range) => {
            let told = format!("bytes {}-{}/{}", range.start, range.end - 1, artifact.size);
            put(&mut answer, header::CONTENT_RANGE, &told);
            StatusCode::PARTIAL_CONTENT
        }
        None => StatusCode::OK,
    };
    let range = range.unwrap_or(0..artifact.size);
    put(
        &mut answer,
        header::CONTENT_LENGTH,
        &(range.end - range.start).to_string(),
    );
    put(&mut answer, header::CONTENT_TYPE, "application/octet-stream");
    let Some(pieces) = front.runs.artifacts.blobs.get(id, artifact.size, range).await? else {
        tracing::error!(artifact_id = %id, "a file is not there, or is not what was kept");
        return Err(Error::not_found().into());
    };
    // Ends with an error where a piece is missing, which aborts the response: less than was announced is never an end.
    Ok((status, answer, Body::from_stream(pieces)).into_response())
}

/// The headers that say which file it is.
fn of_file(tag: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put(&mut headers, header::ETAG, tag);
    // Nobody on the way keeps it, and the caller's own copy is asked about each time: it may have been erased here.
    put(&mut headers, header::CACHE_CONTROL, "private, no-cache");
    put(&mut headers, header::ACCEPT_RANGES, "bytes");
    headers
}

/// The headers that each answer about a file has, whether its bytes are in there or not: a browser joins those of a 304 to
/// what it has kept.
fn shown_nowhere(name: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put(&mut headers, header::CONTENT_DISPOSITION, &disposition(name));
    put(&mut headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(
        &mut headers,
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; sandbox",
    );
    headers
}

/// What stands here is of our making: visible ASCII.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// `attachment`, and the name twice (RFC 6266): for old clients in ASCII, and as it is.
#[must_use]
pub fn disposition(name: &str) -> String {
    let ascii = |c: char| match c {
        // Some clients take `\` and `%` for the beginning of something.
        '"' | '\\' | '%' => '_',
        ' '..='~' => c,
        _ => '_',
    };
    let plain: String = name.chars().map(ascii).collect();
    let mut told = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''");
    for byte in name.bytes() {
        let _ = match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => write!(told, "{}", char::from(byte)),
            other => write!(told, "%{other:02X}"),
        }; // a string takes everything
    }
    told
}

/// Whether a list of entity tags has one that fits, weak or not.
fn matches(headers: &HeaderMap, name: &HeaderName, fits: impl Fn(&str) -> bool) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .any(|told| fits(told.trim().trim_start_matches("W/")))
}

/// Whether a range is asked for of this file, and not of another that was here before: `If-Range` names this one, by its
/// strong tag, or is not there.
fn still(headers: &HeaderMap, tag: &str) -> bool {
    headers
        .get(header::IF_RANGE)
        .is_none_or(|told| told.as_bytes() == tag.as_bytes())
}

/// What a request asks for of a file.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    /// This part, which is not empty.
    Part(Range<u64>),
    /// A part that no file of this size has.
    Nothing,
}

/// Reads `Range`. Several ranges, and other units than bytes, get the whole file, as RFC 9110 (14.2) has it; what is not
/// even a range gets nothing, so that a client with a fault hears of it.
fn asked(headers: &HeaderMap, size: u64) -> Asked {
    let mut told = headers.get_all(header::RANGE).iter();
    let (Some(told), None) = (told.next(), told.next()) else {
        return Asked::Whole;
    };
    let told = told.to_str().unwrap_or_default();
    let Some((unit, set)) = told.split_once('=') else {
        return Asked::Nothing;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Asked::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return Asked::Nothing;
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) => first..last.saturating_add(1).min(size),
        (Some(first), None) if last.is_empty() => first..size,
        (None, Some(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Asked::Nothing,
    };
    if range.is_empty() {
        Asked::Nothing
    } else {
        Asked::Part(range)
    }
}

/// Digits; more of them than a number has are a number beyond every end.
fn number(digits: &str) -> Option<u64> {
    let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_to_the_letter() {
        let headers = |told: &str| HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(told).unwrap())]);
        for (told, size, part) in [
            ("bytes=0-4", 10, Asked::Part(0..5)),
            ("bytes=0-0", 10, Asked::Part(0..1)),
            ("Bytes = 9-", 10, Asked::Part(9..10)),
            ("bytes=5-100", 10, Asked::Part(5..10)),
            ("bytes=-3", 10, Asked::Part(7..10)),
            ("bytes=-300", 10, Asked::Part(0..10)),
            ("bytes=0-99999999999999999999999", 10, Asked::Part(0..10)),
            ("bytes=-99999999999999999999999", 10, Asked::Part(0..10)),
            ("bytes=0-18446744073709551615", 10, Asked::Part(0..10)),
            ("bytes=5-2", 10, Asked::Nothing),
            ("bytes=-0", 10, Asked::Nothing),
            ("bytes=10-", 10, Asked::Nothing),
            ("bytes=99999999999999999999999-", 10, Asked::Nothing),
            ("bytes=0-", 0, Asked::Nothing),
            ("bytes=-1", 0, Asked::Nothing),
            ("bytes=-", 10, Asked::Nothing),
            ("bytes=", 10, Asked::Nothing),
            ("bytes=a-b", 10, Asked::Nothing),
            ("bytes=+1-2", 10, Asked::Nothing),
            ("bytes=1--2", 10, Asked::Nothing),
            ("bytes", 10, Asked::Nothing),
            ("", 10, Asked::Nothing),
            ("lines=1-2", 10, Asked::Whole),
            ("bytes=0-1,3-4", 10, Asked::Whole),
            ("bytes=0-1,", 10, Asked::Whole),
        ] {
            assert_eq!(asked(&headers(told), size), part, "{told}");
        }
        assert_eq!(asked(&HeaderMap::new(), 10), Asked::Whole);
        let mut twice = headers("bytes=0-1");
        twice.append(header::RANGE, HeaderValue::from_static("bytes=2-3"));
        assert_eq!(asked(&twice, 10), Asked::Whole);
    }

    #[test]
    fn a_name_is_told_in_one_line_and_twice() {
        for (name, told) in [
            ("a.txt", "attachment; filename=\"a.txt\"; filename*=UTF-8''a.txt"),
            (
                "say \"hi\"\\.txt",
                "attachment; filename=\"say _hi__.txt\"; filename*=UTF-8''say%20%22hi%22%5C.txt",
            ),
            (
                "é;x=1",
                "attachment; filename=\"_;x=1\"; filename*=UTF-8''%C3%A9%3Bx%3D1",
            ),
            (
                "a\r\nb%41",
                "attachment; filename=\"a__b_41\"; filename*=UTF-8''a%0D%0Ab%2541",
            ),
        ] {
            assert_eq!(disposition(name), told);
        }
    }
}
