//! The same requests over HTTP/2: the same status and code for each that it can express.
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::*;
use crate::house::within;

/// What HTTP/2 cannot say: by how the rows' ids begin, and why. `floods.rs` has what only HTTP/2 can say.
const NOT_HERE: &[(&str, &str)] = &[
    ("B010 HTTP/1.0", "another version"),
    ("B011 HTTP/1.0", "another version"),
    ("B012", "another version, or none"),
    (
        "B013 two Hosts",
        "no client sends them; below, an authority and a host that differ",
    ),
    ("B016", "frames have lengths of their own"),
    ("B017", "there is no transfer coding"),
    ("B018", "there are no chunks"),
    ("B019", "there are no lines"),
    (
        "B020",
        "more rows of headers than HTTP/1 reads at all are a problem here: below",
    ),
    ("B021 a header of 500 KiB", "beyond what is read: below"),
    ("B022 an address of 70 KB", "beyond what is read: below"),
    ("B026", "a body that ends early is a fault of the stream: `floods.rs`"),
    ("B036 NUL", "no client sends it: `floods.rs`"),
    ("B082 NUL in the header", "no client sends it: `floods.rs`"),
];

/// A row as a request of HTTP/2 and its body; `None` if it is no request of HTTP/1.1 in the first place.
fn translated(row: &Row) -> Option<(Request<()>, Bytes, bool)> {
    let end = row.bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = (row.bytes.get(..end)?, row.bytes.get(end + 4..)?);
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, rest) = first.split_once(' ')?;
    let target = rest.strip_suffix(" HTTP/1.1")?;
    let mut headers = HeaderMap::new();
    let (mut host, mut chunked) = (None, false);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        match name.as_str() {
            "host" if host.is_none() => host = Some(value),
            "host" => return None,
            "transfer-encoding" => chunked = true,
            _ => drop(headers.append(name, value)),
        }
    }
    let body = if chunked { joined(body)? } else { body.to_vec() };
    let told = headers
        .get("content-length")
        .map(|length| length.to_str().unwrap_or_default().parse::<usize>());
    let whole = match told {
        None => true,
        Some(length) => length.ok()? == body.len(),
    };
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).ok()?;
    let authority = host.as_ref().and_then(|host| host.to_str().ok());
    let full: Result<Uri, _> = match authority {
        _ if target.starts_with("http://") => target.parse(),
        Some(authority) if method == "CONNECT" => authority.parse(),
        Some(authority) => format!("http://{authority}{target}").parse(),
        None => target.parse(),
    };
    let as_told =
        |uri: &Uri| authority.is_none() || target.contains("://") || uri.authority().map(|it| it.as_str()) == authority;
    match full {
        Ok(uri) if as_told(&uri) => *request.uri_mut() = uri,
        // What stands no chance as an authority is said as a `host`, as one who passes on HTTP/1 does.
        _ => {
            *request.uri_mut() = target.parse::<Uri>().ok()?;
            headers.insert("host", host?);
        }
    }
    *request.headers_mut() = headers;
    // Without an authority, as by one who passes on HTTP/1.
    *request.version_mut() = match request.uri().authority() {
        Some(_) => Version::HTTP_2,
        None => Version::HTTP_11,
    };
    Some((request, body.into(), whole && !row.fin))
}

/// What well-formed chunks hold.
fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let line = chunks.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&chunks[..line]).ok()?, 16).ok()?;
        let chunk = chunks.get(line + 2..line + 2 + size)?;
        all.extend_from_slice(chunk);
        chunks = chunks.get(line + 2 + size + 2..)?;
        if size == 0 {
            return Some(all);
        }
    }
}

/// An answer over HTTP/2, or how the stream was refused.
async fn ask_h2(
    place: SocketAddr,
    request: Request<()>,
    body: Bytes,
    whole: bool,
) -> Result<(HeaderMap, u16, Bytes), h2::Error> {
    let stream = soon("a connection", TcpStream::connect(place)).await.unwrap();
    let (client, connection) = soon("a handshake", h2::client::handshake(stream)).await?;
    let driver = tokio::spawn(connection);
    let talk = async {
        let (answer, mut sending) = client.ready().await?.send_request(request, body.is_empty() && whole)?;
        if !body.is_empty() {
            let _ = sending.send_data(body, whole); // a server that has heard enough may have said so
        }
        let (head, mut incoming) = answer.await?.into_parts();
        let mut all = BytesMut::new();
        while let Some(piece) = incoming.data().await {
            let piece = piece?;
            let _ = incoming.flow_control().release_capacity(piece.len()); // as much as came
            all.extend_from_slice(&piece);
        }
        Ok((head.headers, head.status.as_u16(), all.freeze()))
    };
    let told = within(Duration::from_secs(20), "an answer over HTTP/2", talk).await;
    driver.abort();
    told
}

/// One row.
async fn answered_h2(place: SocketAddr, row: Row) {
    let (request, body, whole) = translated(&row).expect("a request of HTTP/2");
    let head = request.method() == Method::HEAD;
    let told = ask_h2(place, request, body, whole).await;
    let (headers, status, body) = told.unwrap_or_else(|error| panic!("no answer: {error}"));
    let Says::Problem(expected, code) = row.says else {
        panic!("a row of HTTP/1's own")
    };
    assert_eq!(
        headers.get("content-type").map(HeaderValue::as_bytes),
        Some(&b"application/problem+json"[..])
    );
    assert_eq!(status, expected, "{body:?}");
    if head {
        assert!(body.is_empty());
        return;
    }
    let problem: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (problem["status"].as_u64(), problem["code"].as_str()),
        (Some(status.into()), Some(code)),
        "{problem}"
    );
    assert_eq!(
        headers.get("x-request-id").map(HeaderValue::as_bytes),
        problem["request_id"].as_str().map(str::as_bytes)
    );
    is_a_problem(&problem, |name| headers.contains_key(name));
}

/// What is said otherwise here.
fn own_rows() -> Vec<Row> {
    let many: Vec<String> = (0..101).map(|n| format!("X-{n}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    vec![row(
        "B020 101 headers, in frames",
        ask("GET", "/agents", &many),
        431,
        "headers_too_large",
    )]
}

#[tokio::test]
async fn over_http2_the_same_requests_get_the_same_answers() {
    let (upstream, gateway) = house().await;
    let is_here = |row: &Row| !NOT_HERE.iter().any(|(id, _)| row.id.starts_with(id));
    let (here, not): (Vec<Row>, Vec<Row>) = all().into_iter().partition(is_here);
    let (keyed, keyed_not): (Vec<Row>, Vec<Row>) = credentials::keyed_rows().into_iter().partition(is_here);
    let not = [not, keyed_not].concat();
    for (id, why) in NOT_HERE {
        assert!(
            not.iter().any(|row| row.id.starts_with(id)),
            "no row {id}, which cannot be said: {why}"
        );
    }
    assert!(
        here.len() > 6 * not.len(),
        "{} rows, and {} that are not here",
        here.len(),
        not.len()
    );
    every([here, own_rows()].concat(), async |row| {
        answered_h2(gateway.addr(), row).await
    })
    .await;
    nothing_happened(&upstream, &gateway, gateway.folder()).await;

    let (upstream, gateway) = credentials::keyed_house().await;
    every(keyed, async |row| answered_h2(gateway.addr(), row).await).await;
    let good = good_by(credentials::ALICE);
    nothing_happened_but(good, &upstream, &gateway, gateway.folder()).await;
}

/// Beyond what is read at all there is no problem object to be had, but a status or the end of the stream.
#[tokio::test]
async fn over_http2_a_head_beyond_all_measure_ends_its_stream() {
    let (upstream, gateway) = house().await;
    let long = "x".repeat(500 << 10);
    for (what, request) in [
        (
            "a header of 500 KiB",
            Request::get("http://localhost/agents").header("x-a", &long),
        ),
        (
            "an address of 60 KB",
            Request::get(format!("http://localhost/{}", &long[..60_000])),
        ),
    ] {
        match ask_h2(gateway.addr(), request.body(()).unwrap(), Bytes::new(), true).await {
            Ok((_, status, body)) => assert!(matches!(status, 414 | 431), "{what}: {status} {body:?}"),
            Err(error) => assert!(
                error.is_reset() || error.is_go_away() || error.is_io(),
                "{what}: {error}"
            ),
        }
    }
    nothing_happened(&upstream, &gateway, gateway.folder()).await;
}

/// One who says two names is refused by the one that counts, and by the other.
#[tokio::test]
async fn over_http2_an_authority_and_a_host_that_differ_do_not_get_past_either() {
    let (upstream, gateway) = house().await;
    for (authority, host) in [("localhost", "evil.example"), ("evil.example", "localhost")] {
        let request = Request::get(format!("http://{authority}/agents")).header("host", host);
        let answer = ask_h2(gateway.addr(), request.body(()).unwrap(), Bytes::new(), true).await;
        let (_, status, body) = answer.expect("an answer");
        assert!(matches!(status, 400 | 421), "{authority} and {host}: {status} {body:?}");
    }
    nothing_happened(&upstream, &gateway, gateway.folder()).await;
}
